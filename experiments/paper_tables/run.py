"""How close do the paper's tables come, rebuilt from our structures and priced by the calibrated tables?

Run from the repository root: `python experiments/paper_tables/run.py`. Writes table1.csv ... table10.csv, summary.json
and the tables of README.md beside this file. Needs no torch and no data besides what is shipped. Table 8 has AP alone:
the runs of experiments/distillation stand beside it.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from readings import Reading, readings

from maenas.latency.predict import predict
from maenas.latency.table import LatencyTable, load_table
from maenas.lowering.costs import num_flops, num_params

HERE = Path(__file__).parent
CALIBRATION = HERE.parent / "latency_calibration" / "report.json"
DISTILLATION = HERE.parent / "distillation" / "results.csv"
METHODS = {"none": "38.2", "mimic": "40.2", "mgd": "39.6", "cwd": "40.7"}
"""Of Table 8, with the printed AP on COCO after 36 epochs; `none` is the student alone."""

DEVICES = {"t4": "nvidia-t4", "intel-8163": "intel-8163"}
PRINTED = 0.055
"""Half a unit of the last printed digit of GFLOPs, and a little: how near a rebuilt network must come."""

COLUMNS = (
    "row", "what", "paper_ms", "ours_ms", "sigma_ms", "ms_difference", "role", "left_out_ms", "paper_gflops",
    "ours_gflops", "rule", "gflops_difference", "conv_gflops", "paper_params_m", "ours_params_m", "params_difference",
    "paper_ap", "note",
)  # fmt: skip
BEGIN, END = "<!-- tables: written by run.py -->", "<!-- end of tables -->"


def main() -> None:
    """Write every table and the README's part."""
    ours = readings()
    report = json.loads(CALIBRATION.read_text(encoding="utf-8"))
    with (HERE / "paper.csv").open(newline="", encoding="utf-8") as stream:
        paper = list(csv.DictReader(stream))
    parts, summary = [], {}
    for number in dict.fromkeys(row["table"] for row in paper):
        lines = [line_of(row, ours[number, row["row"]], report) for row in paper if row["table"] == number]
        with (HERE / f"table{number}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
        parts.append(f"### Table {number}\n\n{markdown(lines)}")
        summary[number] = errors_of(lines)
        if number == "6":
            parts.append(f"### Table 8, at the scale of a CPU\n\n{write_table8()}")
    (HERE / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    readme.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{after}", encoding="utf-8")
    print(json.dumps(summary, indent=2))


def write_table8() -> str:
    """Gains of the distillation methods, the paper's and ours of another set and network, as CSV and Markdown."""
    with DISTILLATION.open(newline="", encoding="utf-8") as stream:
        runs = [row for row in csv.DictReader(stream) if row["group"] == "table8"]
    ours = {name: [float(row["ap"]) for row in runs if row["method"] == name] for name in METHODS}
    means = {name: sum(values) / len(values) for name, values in ours.items()}
    heads = ("method", "AP paper", "gain paper", "AP ours, by seed", "gain ours", "difference of gains")
    rows = []
    for name, printed in METHODS.items():
        gain = float(printed) - float(METHODS["none"])
        own = means[name] - means["none"]
        seeds = " / ".join(f"{value:.1f}" for value in ours[name])
        figures = ("", "", "") if name == "none" else (f"{gain:+.1f}", f"{own:+.1f}", f"{own - gain:+.1f}")
        rows.append((name, printed, figures[0], seeds, *figures[1:]))
    with (HERE / "table8.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([heads, *rows])
    lines = [heads, ["---"] * len(heads), *([cell or "-" for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def line_of(row: dict[str, str], reading: Reading, report: dict) -> dict[str, object]:
    """One row: what the paper prints, what we get, and the difference."""
    table = load_table(row["device"])
    facts = report[DEVICES[row["device"]]]
    fitted = next((fact for fact in facts["rows"] if fact["model"] == reading.fact), None)
    line: dict[str, object] = dict.fromkeys(COLUMNS, "")
    line |= {
        "row": row["row"],
        "what": reading.what,
        "paper_ms": row["latency_ms"],
        "paper_gflops": row["gflops"],
        "paper_params_m": row["params_m"],
        "paper_ap": row["ap"],
        "note": reading.note,
    }
    if not reading.what:
        return line
    line["role"] = "fit" if fitted else "chosen" if reading.chosen else "unseen"
    line["left_out_ms"] = f"{fitted['left_out_ms']:.2f}" if fitted else ""
    ms, sigma = latency(reading, table, fitted)
    line |= {
        "ours_ms": f"{ms:.2f}",
        "sigma_ms": f"{sigma:.2f}",
        "ms_difference": f"{ms / float(row['latency_ms']) - 1:+.1%}",
    }
    if reading.ops:
        line |= costs(row, reading)
    return line


def latency(reading: Reading, table: LatencyTable, fitted: dict | None) -> tuple[float, float]:
    """What the calibrated table says of a network, and one standard deviation."""
    if reading.ops:
        prediction = predict(reading.ops, table)
        return prediction.latency_ms, prediction.sigma_ms
    assert fitted is not None
    return fitted["fitted_ms"], table.uncertainty["relative"] * fitted["fitted_ms"]


def costs(row: dict[str, str], reading: Reading) -> dict[str, object]:
    """FLOPs by the counter's rule that comes nearest, and parameters."""
    plain = float(num_flops(reading.ops)) / 1e9
    found: dict[str, object] = {"conv_gflops": f"{plain:.2f}"}
    # The published counters also count batch norms, which the facts' operators do not know of.
    by_rule = (
        {rule: float(num_flops(reading.ops, rule)) / 1e9 for rule in ("old", "new")}
        if reading.ours
        else {"conv": plain}
    )
    printed = float(row["gflops"]) if row["gflops"] else None
    rule = min(by_rule, key=lambda name: abs(by_rule[name] - (printed or by_rule["old" if reading.ours else "conv"])))
    if printed is not None:
        found |= {"rule": rule, "gflops_difference": f"{by_rule[rule] - printed:+.2f}"}
    found["ours_gflops"] = f"{by_rule[rule]:.2f}"
    params = float(num_params(reading.ops, "reparameterised" if reading.ours else "folded")) / 1e6
    found["ours_params_m"] = f"{params:.2f}"
    if row["params_m"]:
        found["params_difference"] = f"{params - float(row['params_m']):+.2f}"
    return found


def markdown(lines: list[dict[str, object]]) -> str:
    """A table of the columns that hold something."""
    flops, params = (any(line[name] for line in lines) for name in ("paper_gflops", "paper_params_m"))
    heads = ["row", "ms paper", "ms ours", "difference"]
    heads += ["GFLOPs paper", "ours (rule)", "difference"] if flops else ["GFLOPs ours (2 x MACs)"]
    heads += ["params M paper", "ours", "difference"] if params else ["params M ours"]
    heads += ["AP paper", "remarks"]
    rows = [heads, ["---"] * len(heads)]
    for line in lines:
        cells = [line["row"], line["paper_ms"]]
        cells += [f"{line['ours_ms']} ± {line['sigma_ms']}" if line["ours_ms"] else "-", line["ms_difference"] or "-"]
        if flops:
            shown = f"{line['ours_gflops']} ({line['rule']})" if line["ours_gflops"] else "-"
            cells += [line["paper_gflops"], shown, line["gflops_difference"] or "-"]
        else:
            cells.append(line["conv_gflops"] or "-")
        if params:
            cells += [line["paper_params_m"], line["ours_params_m"] or "-", line["params_difference"] or "-"]
        else:
            cells.append(line["ours_params_m"] or "-")
        role = f"in the fit; left out {line['left_out_ms']} ms" if line["role"] == "fit" else str(line["role"])
        role = "reading chosen by its latency" if role == "chosen" else role
        cells += [line["paper_ap"], "; ".join(text for text in (role, str(line["note"])) if text)]
        rows.append([str(cell).replace("*", "\\*") for cell in cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def errors_of(lines: list[dict[str, object]]) -> dict[str, object]:
    """How many rows are rebuilt, reproduce the printed GFLOPs, and how far off latencies are."""
    priced = [line for line in lines if line["ours_ms"]]
    flops = [abs(float(str(line["gflops_difference"]))) for line in lines if line["gflops_difference"]]
    found: dict[str, object] = {
        "rows": len(lines),
        "rebuilt": len(priced),
        "gflops_compared": len(flops),
        "gflops_reproduced": sum(difference <= PRINTED for difference in flops),
    }
    for role in ("unseen", "fit"):
        # A network that is drawn twice, with and without a teacher, counts once.
        errors = {
            (line["what"], line["paper_ms"]): abs(float(str(line["ms_difference"]).rstrip("%")))
            for line in priced
            if line["role"] == role
        }
        if errors:
            found[f"{role}_rows"] = len(errors)
            found[f"{role}_mean_error_percent"] = round(sum(errors.values()) / len(errors), 1)
    return found


if __name__ == "__main__":
    sys.exit(main())
