"""What does it bring that reading, network, drawing and writing of a video work at the same time?"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from detector.ahead import Ahead
from detector.images import read_image, resize, to_input
from detector.predict import predict_stream
from detector.runtime import ExportedDetector, load
from detector.video import VideoReader, VideoWriter
from maenas.profiling.host import LoadGuard, describe_host, pin

HERE = Path(__file__).resolve().parent
SCORE = 0.3


def main() -> None:
    """Run both ways in alternation, and write pipeline.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model.json of an export that takes any or one image")
    parser.add_argument("photos", type=Path, help="folder of photographs that the video is made of")
    parser.add_argument("--runtime", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), metavar=("H", "W"))
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "pipeline.csv")
    arguments = parser.parse_args()
    pin(arguments.cores)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "in.mp4"
        make_video(video, arguments.photos, tuple(arguments.size), arguments.frames)
        for runtime in arguments.runtime:
            for threads in range(1, arguments.cores + 1):
                model = load(arguments.model, runtime=runtime, threads=threads)
                stages = time_stages(model, video, Path(folder) / "out.mp4")
                fps: dict[str, list[float]] = {name: [] for name in WAYS}
                busy = []
                for number in range(arguments.rounds):
                    # In turns, each way first as often as the other.
                    for name in list(WAYS)[:: 1 if number % 2 == 0 else -1]:
                        with LoadGuard() as guard:
                            started = time.perf_counter()
                            count = WAYS[name](model, video, Path(folder) / "out.mp4")
                            fps[name].append(count / (time.perf_counter() - started))
                        busy.append(guard.busy)
                ratios = [after / before for before, after in zip(*fps.values(), strict=True)]
                rows.append(
                    {
                        "runtime": runtime,
                        "threads": threads,
                        **{f"{stage}_ms": round(ms, 2) for stage, ms in stages.items()},
                        **{f"{name}_fps": round(statistics.median(values), 2) for name, values in fps.items()},
                        "ratio": round(statistics.median(ratios), 3),
                        "ratio_low": round(min(ratios), 3),
                        "ratio_high": round(max(ratios), 3),
                        "busy": round(max(busy), 2),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    conditions = {
        "host": describe_host(),
        "model": arguments.model.parent.name,
        **{name: getattr(arguments, name) for name in ("size", "frames", "rounds", "cores")},
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(conditions, indent=2) + "\n", encoding="utf-8")


def make_video(path: Path, photos: Path, size: tuple[int, int], count: int) -> None:
    """Photographs, each for five frames that move a little."""
    files = sorted(photos.glob("*.jpg"))[: max(1, count // 5)]
    pictures = [resize(read_image(file), size) for file in files]
    with VideoWriter(path, fps=25, size=size) as writer:
        for index in range(count):
            picture = pictures[index // 5 % len(pictures)]
            writer.write(np.roll(picture, 4 * (index % 5), axis=1))


def sequential(model: ExportedDetector, video: Path, target: Path) -> int:
    """Frame by frame, one thing after the other."""
    reader = VideoReader(video)
    count, writer = 0, None
    for frame in reader:
        found = detect(model, frame)
        drawn = found.draw(frame)
        if writer is None:
            writer = VideoWriter(target, fps=reader.fps, size=drawn.shape[:2])
        writer.write(drawn)
        count += 1
    assert writer is not None
    writer.__exit__(None, None, None)
    return count


def pipelined(model: ExportedDetector, video: Path, target: Path) -> int:
    """As `maenas predict` does, with one image at a time in the network."""
    reader = VideoReader(video)
    count, writer = 0, None
    stream = predict_stream(model, video, score_threshold=SCORE, batch_size=1)

    def draw(prediction):  # noqa: ANN001, ANN202
        return prediction.detections.draw(prediction.image)

    with Ahead(stream) as predictions, Ahead(map(draw, predictions)) as pictures:
        for drawn in pictures:
            if writer is None:
                writer = VideoWriter(target, fps=reader.fps, size=drawn.shape[:2])
            writer.write(drawn)
            count += 1
    assert writer is not None
    writer.__exit__(None, None, None)
    return count


WAYS: dict[str, Callable[[ExportedDetector, Path, Path], int]] = {"sequential": sequential, "pipelined": pipelined}


def detect(model: ExportedDetector, frame: np.ndarray):  # noqa: ANN201
    """Detections in pixels of the frame, as `predict_stream` gives them."""
    (found,) = model.detect(
        to_input([frame], model.image_size), score_threshold=SCORE, iou_threshold=0.7, max_detections=300
    )
    return found.rescale(frame.shape[:2]).clip().filter(min_area=0)


def time_stages(model: ExportedDetector, video: Path, target: Path, *, count: int = 60) -> dict[str, float]:
    """Median ms of each stage, one after the other in one thread."""
    spent: dict[str, list[float]] = {name: [] for name in ("read", "resize", "network", "draw", "write")}
    frames = iter(VideoReader(video))
    writer = None
    for _ in range(count):
        marks = [time.perf_counter()]
        frame = next(frames, None)
        if frame is None:
            break
        marks.append(time.perf_counter())
        inputs = to_input([frame], model.image_size)
        marks.append(time.perf_counter())
        (found,) = model.detect(inputs, score_threshold=SCORE, iou_threshold=0.7, max_detections=300)
        found = found.rescale(frame.shape[:2]).clip().filter(min_area=0)
        marks.append(time.perf_counter())
        drawn = found.draw(frame)
        marks.append(time.perf_counter())
        writer = writer or VideoWriter(target, fps=25, size=drawn.shape[:2])
        writer.write(drawn)
        marks.append(time.perf_counter())
        for name, before, after in zip(spent, marks, marks[1:], strict=False):
            spent[name].append(1e3 * (after - before))
    assert writer is not None
    writer.__exit__(None, None, None)
    return {name: statistics.median(values) for name, values in spent.items()}


if __name__ == "__main__":
    main()
