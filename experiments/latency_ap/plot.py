"""The picture of run.py: AP against measured latency, for each runtime; published networks form their own curve."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from maenas.files import write_bytes_atomically, write_text_atomically
from maenas.plot_picture import draw, picture_bytes
from maenas.plot_points import Point, grouped, points_csv
from maenas.plot_runs import run_points

HERE = Path(__file__).resolve().parent
RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


def main() -> None:
    """Join evaluations and latencies, draw twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluations", nargs="*", type=Path, help="further eval folders: other seeds")
    parser.add_argument("--other", nargs=3, action="append", default=[], metavar=("NAME", "FILE", "AP"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()

    latency = arguments.out / "latency.json"
    runs = [run for folder in arguments.work.glob("*-seed*") for run in (folder / "eval", folder / "structure.json")]
    points, _ = run_points([str(run) for run in sorted([*runs, *arguments.evaluations])] + [str(latency)], frontier=())
    ours = [
        replace(each, series="published networks", own=False, source="latency.json")
        if "damo-yolo" in each.label
        else replace(each, series="searched", source="latency.json")
        for each in points
    ]
    lines = json.loads(latency.read_text(encoding="utf-8"))["lines"]
    for backend, name in RUNTIMES.items():
        here = [each for each in ours if each.conditions.runtime.startswith(name)]
        here += others(here[0], [line for line in lines if line["backend"] == backend], arguments.other)
        groups = grouped(here)
        figure = draw(groups, labels="all").figure
        write_bytes_atomically(arguments.out / f"latency-ap-{backend}.png", picture_bytes(figure, "png"))
        write_text_atomically(arguments.out / f"latency-ap-{backend}.csv", points_csv(groups))


def others(like: Point, lines: list[dict], known: list[list[str]]) -> Iterator[Point]:
    """Detectors of others under the same conditions, with the AP that their own evaluation gave."""
    for name, file, ap in known:
        for line in lines:
            if Path(line["model"]).name == file:
                yield replace(
                    like,
                    label=name,
                    series=name,
                    own=False,
                    latency_ms=line["p50_ms"],
                    latency_low_ms=line["p25_ms"],
                    latency_high_ms=line["p90_ms"],
                    **dict.fromkeys(("ap", "ap_low", "ap_high"), float(ap)),
                    num_evaluations=1,
                    **dict.fromkeys(("params_m", "gflops")),
                    **dict.fromkeys(("digest", "note"), ""),
                )


if __name__ == "__main__":
    main()
