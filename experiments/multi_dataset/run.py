"""Two sources that each mark some classes of the same kind of pictures: what do the classes that one lacks suffer?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from common import HERE, add_line, evaluate, maenas, network, train

SIDE, PICTURES, BATCH = 160, 160, 16
MARKED = {
    "first": {"arrow": "arrow", "cross": "cross", "heart": "symbol"},
    "second": {"ring": "ring", "star": "symbol"},
}
"""What each source marks of the five shapes, and its name for it; `symbol` is two things."""
TAXONOMY = {"ambiguous_by_source": {"symbol": {"first": "heart", "second": "star"}}}
VARIANTS = {
    "unknown": "what a source does not mark teaches nothing there",
    "absent": "what a source does not mark counts as absent there",
    "complete": "both sources mark all five shapes: what could be had",
}


def main() -> None:
    """Train the variants with the seeds, evaluate each on pictures that are marked completely."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="pictures and runs")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    unions = prepare(arguments.work / "data")
    model = network(arguments.work / "structure.json", side=SIDE, num_classes=5)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            out = arguments.work / f"{variant}-seed{seed}"
            union = unions["complete" if variant == "complete" else "marked"]
            sets = ("loss.partial_labels=false",) if variant == "absent" else ()
            last = train(out, union, model=model, epochs=arguments.epochs, batch=BATCH, seed=seed, sets=sets)
            record = evaluate(last, arguments.work / "data" / "truth", out / "eval")
            classes = {entry["name"]: round(100 * entry["ap"], 1) for entry in record["classes"]}
            ap, ap50 = (round(100 * record["metrics"][name], 1) for name in ("ap", "ap50"))
            line = {"run": f"{variant}-seed{seed}", "epochs": arguments.epochs, "ap": ap, "ap50": ap50, **classes}
            add_line(arguments.out / "results.csv", line)


def prepare(folder: Path) -> dict[str, Path]:
    """Draw pictures for both sources and for measuring; union files of the marked and the complete sources."""
    for seed, name in enumerate((*MARKED, "truth")):
        if not (folder / name).exists():
            maenas("sample-data", str(folder / name), "--images", str(PICTURES), "--seed", str(100 + seed))
    for name, names in MARKED.items():
        for split in ("train", "val"):
            complete = json.loads((folder / name / "annotations" / f"instances_{split}.json").read_text())
            (folder / name / f"marked_{split}.json").write_text(json.dumps(only(complete, names)))
        content = {f"{split}": f"marked_{split}.json" for split in ("train", "val")}
        content |= {f"{split}_images": f"images/{split}" for split in ("train", "val")}
        (folder / name / "marked.yaml").write_text(yaml.safe_dump(content))
    files = {"marked": ("marked.yaml", TAXONOMY), "complete": ("data.yaml", {})}
    written = {}
    for kind, (data_file, taxonomy) in files.items():
        sources = [{"name": name, "path": f"{name}/{data_file}"} for name in MARKED]
        written[kind] = folder / f"union_{kind}.yaml"
        written[kind].write_text(yaml.safe_dump({"sources": sources, "taxonomy": taxonomy}, sort_keys=False))
    return written


def only(record: dict, names: dict[str, str]) -> dict:
    """A COCO record with some of its classes, under the source's names for them."""
    kept = {entry["id"]: names[entry["name"]] for entry in record["categories"] if entry["name"] in names}
    return {
        "images": record["images"],
        "annotations": [entry for entry in record["annotations"] if entry["category_id"] in kept],
        "categories": [{"id": number, "name": name} for number, name in kept.items()],
    }


if __name__ == "__main__":
    main()
