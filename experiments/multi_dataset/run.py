"""Two sources that each mark some classes of the same kind of pictures: what do the classes that one lacks suffer?"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from common import HERE, add_line, evaluate, maenas, network, train
from rectangles import write_rectangles


@dataclass(frozen=True)
class Pictures:
    """What the sources show.

    Attributes:
        side: Of the network's input.
        counts: Pictures for training; of `truth` only those for validation, a quarter of it, are used.
        marked: What each source marks, and its name for it; one name is two things.
        epochs: Of a run.
    """

    side: int
    counts: dict[str, int]
    marked: dict[str, dict[str, str]]
    epochs: int


PICTURES = {
    "rectangles": Pictures(
        64,
        {"first": 96, "second": 32, "truth": 400},
        {"first": {"red": "red", "yellow": "light"}, "second": {"blue": "blue", "cyan": "light"}},
        40,
    ),
    "shapes": Pictures(
        160,
        {"first": 240, "second": 80, "truth": 400},
        {
            "first": {"arrow": "arrow", "cross": "cross", "heart": "symbol"},
            "second": {"ring": "ring", "star": "symbol"},
        },
        60,
    ),
}
VARIANTS = {
    "unknown": "what a source does not mark teaches nothing there",
    "absent": "what a source does not mark counts as absent there",
    "complete": "both sources mark everything: what could be had",
}


def main() -> None:
    """Train the variants with the seeds, evaluate each on pictures that are marked completely."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="pictures and runs")
    parser.add_argument("--pictures", default="rectangles", choices=list(PICTURES))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    pictures, work = PICTURES[arguments.pictures], arguments.work / arguments.pictures
    unions = prepare(work / "data", arguments.pictures)
    model = network(work / "structure.json", side=pictures.side, num_classes=5)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            out = work / f"{variant}-seed{seed}"
            union = unions["complete" if variant == "complete" else "marked"]
            sets = ("loss.partial_labels=false",) if variant == "absent" else ()
            last = train(out, union, model=model, epochs=pictures.epochs, batch=8, seed=seed, sets=sets)
            record = evaluate(last, work / "data" / "truth", out / "eval")
            classes = {entry["name"]: round(100 * entry["ap"], 1) for entry in record["classes"]}
            ap, ap50 = (round(100 * record["metrics"][name], 1) for name in ("ap", "ap50"))
            line = {"run": f"{variant}-seed{seed}", "epochs": pictures.epochs, "ap": ap, "ap50": ap50, **classes}
            add_line(arguments.out / f"results_{arguments.pictures}.csv", line)


def prepare(folder: Path, kind: str) -> dict[str, Path]:
    """Draw pictures for both sources and for measuring; union files of the marked and the complete sources."""
    pictures = PICTURES[kind]
    for seed, (name, count) in enumerate(pictures.counts.items(), start=100):
        if not (folder / name).exists() and kind == "shapes":
            maenas("sample-data", str(folder / name), "--images", str(count), "--seed", str(seed))
        elif not (folder / name).exists():
            write_rectangles(folder / name, count=count, side=pictures.side, seed=seed)
    for name, names in pictures.marked.items():
        for split in ("train", "val"):
            complete = json.loads((folder / name / "annotations" / f"instances_{split}.json").read_text())
            (folder / name / f"marked_{split}.json").write_text(json.dumps(only(complete, names)))
        content = {split: f"marked_{split}.json" for split in ("train", "val")}
        content |= {f"{split}_images": f"images/{split}" for split in ("train", "val")}
        (folder / name / "marked.yaml").write_text(yaml.safe_dump(content))
    meanings: dict[str, dict[str, str]] = {}
    for name, names in pictures.marked.items():
        for meaning, own in names.items():
            meanings.setdefault(own, {})[name] = meaning
    taxonomy = {"ambiguous_by_source": {own: by_source for own, by_source in meanings.items() if len(by_source) > 1}}
    written = {}
    for which, data_file in (("marked", "/marked.yaml"), ("complete", "")):
        sources = [{"name": name, "path": f"{name}{data_file}"} for name in pictures.marked]
        content = {"sources": sources, "taxonomy": taxonomy if which == "marked" else {}}
        written[which] = folder / f"union_{which}.yaml"
        written[which].write_text(yaml.safe_dump(content, sort_keys=False))
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
