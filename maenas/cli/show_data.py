"""`maenas show-data`: a picture of training samples with their boxes, to be looked at before training."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from maenas.cli.targets import check_new_file

HELP = "draw training images with their boxes, as augmentation makes them"
EXAMPLE = "maenas show-data data.yaml --progress 1 --out samples.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("data", metavar="DATA", help="data.yaml, COCO .json, folder of a data set, or union file")
    what = parser.add_argument_group("what to show")
    what.add_argument("--split", default="train", metavar="NAME", help="train, val or test (default: train)")
    what.add_argument("--count", type=int, default=16, metavar="N", help="samples (default: 16)")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="as of the training run (default: 0)")
    what.add_argument("--image-size", metavar="N[xM]", help="height x width, multiples of 32 (default: the recipe's)")
    how = parser.add_argument_group("augmentation")
    kind = how.add_mutually_exclusive_group()
    kind.add_argument("--augment", action="store_true", help="augmented, as in training (the default)")
    kind.add_argument("--plain", action="store_true", help="images as they are, aspect ratio kept")
    how.add_argument("--recipe", metavar="NAME", help="recipe or YAML file of settings (default: their defaults)")
    how.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a setting, such as augment.mixup=1"
    )
    how.add_argument("--progress", type=float, default=1.0, metavar="P", help="of the run, 0 to 1 (default: 1)")
    how.add_argument("--final", action="store_true", help="as in the final epochs: without mosaic and MixUp")
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="samples.png", metavar="FILE", help="picture (default: samples.png)")
    output.add_argument("--force", action="store_true", help="write --out although it exists")
    output.add_argument("--json", action="store_true", help="print boxes and labels of the samples")


def run(arguments: argparse.Namespace) -> int:
    """Draw the samples, write the picture, say what is in it.

    Raises:
        MaenasError: Data, settings or an option cannot be used, or the picture cannot be written.
    """
    import io
    from pathlib import Path

    from maenas.cli.detector import bundled
    from maenas.errors import OutputError
    from maenas.extras import require
    from maenas.files import write_bytes_atomically

    out = Path(arguments.out)
    if out.suffix.lower() != ".png":
        raise OutputError(f"{out}: expected a name that ends in .png")
    check_new_file(out, force=arguments.force)
    for name, fits, expected in (
        ("count", 1 <= arguments.count <= 400, "1 ... 400"),
        ("seed", arguments.seed >= 0, "at least 0"),
        ("progress", 0 <= arguments.progress <= 1, "0 ... 1"),
    ):
        if not fits:
            raise bundled("errors").ConfigError(f"--{name} is {getattr(arguments, name)}; expected {expected}")
    settings, sampling = _settings(arguments)
    dataset = bundled("data.source").load_split(arguments.data, arguments.split)
    preview = bundled("data.preview")
    if arguments.plain:
        samples, problems = preview.plain_samples(
            dataset, size=settings.image_size, count=arguments.count, seed=arguments.seed
        )
    else:
        sada = not arguments.final or settings.sada_in_final_epochs
        moment = bundled("data.pipeline").Moment(arguments.progress, mixing=not arguments.final, sada=sada)
        samples, problems = preview.augmented_samples(
            dataset, settings, count=arguments.count, seed=arguments.seed, moment=moment, sampling=sampling
        )
    for problem in dict.fromkeys(problems):
        print(f"maenas: warning: {problem}", file=sys.stderr)
    if not samples:
        raise bundled("errors").DataError(f"{dataset.name}: none of its {len(dataset)} images can be read")
    content = io.BytesIO()
    picture = require("PIL.Image", extra="detector", purpose="writing images")
    picture.fromarray(preview.draw_grid(samples, dataset.class_names)).save(content, format="PNG")
    write_bytes_atomically(out, content.getvalue())
    _report(arguments, dataset, samples)
    return 0


def _settings(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Augmentation and sampling settings of the recipe, with what the command line changes."""
    from dataclasses import replace

    from maenas.cli.detector import bundled
    from maenas.cli.question import parse_image_size

    settings, sampling = bundled("data.settings").AugmentSettings(), bundled("data.sampling").SamplingSettings()
    size = None
    if arguments.recipe or arguments.set:
        config = bundled("config").load_config(arguments.recipe, overrides=arguments.set)
        settings, sampling, size = config.augment, config.sampling, config.model.image_size
    if arguments.image_size is not None:
        size = parse_image_size(arguments.image_size)
    if size is None:
        return settings, sampling
    try:
        return replace(settings, image_size=size), sampling
    except ValueError as error:
        raise bundled("errors").ConfigError(str(error)) from None


def _report(arguments: argparse.Namespace, dataset: Any, samples: list[Any]) -> None:  # noqa: ANN401
    import json

    if arguments.json:
        entries = [
            {
                "boxes": [[round(float(side), 2) for side in box] for box in sample.boxes],
                "labels": [int(label) for label in sample.labels],
            }
            for sample in samples
        ]
        record = {"data": dataset.name, "class_names": list(dataset.class_names), "samples": entries}
        print(json.dumps({**record, "out": arguments.out}))
        return
    boxes = sum(len(sample.labels) for sample in samples)
    height, width = samples[0].image.shape[:2]
    print(f"{dataset.name}: {len(samples)} samples of {height}x{width} with {boxes} boxes")
    print(f"written: {arguments.out}")
