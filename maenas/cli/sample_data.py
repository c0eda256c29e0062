"""`maenas sample-data`: draw a small data set to try training on."""

from __future__ import annotations

import argparse

HELP = "draw a small data set to try training on"
EXAMPLE = "maenas sample-data shapes --images 400 --seed 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", help="new or empty folder")
    parser.add_argument(
        "--images", type=int, default=400, metavar="N", help="for training, and a quarter more for validation (400)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed, the same pictures (default: 0)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace an earlier sample set in DIR, or write beside other files"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Draw pictures of shapes, write them with COCO annotations and data.yaml, print what there is.

    Raises:
        MaenasError: The folder is in use or cannot be written, or a number is out of range.
    """
    import json
    from pathlib import Path

    from maenas.cli.detector import bundled
    from maenas.cli.progress import progress_bars

    folder = Path(arguments.folder)
    with progress_bars() as bars:
        task = bars.add("drawing", total=arguments.images + max(1, arguments.images // 4))
        counts = bundled("data.sample_data").write_sample_data(
            folder,
            num_train=arguments.images,
            seed=arguments.seed,
            force=arguments.force,
            progress=lambda done: bars.show(task, done),
        )
    data_file = folder / "data.yaml"
    if arguments.json:
        print(json.dumps({"data": str(data_file), "seed": arguments.seed, "splits": counts}))
        return 0
    for split, count in counts.items():
        print(f"{split + ':':6} {count['images']} images, {count['boxes']} boxes, {count['crowds']} crowd regions")
    print(f"written: {data_file}")
    return 0
