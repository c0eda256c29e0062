"""`maenas train`: a network and a data set to checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.errors import OptionError

if TYPE_CHECKING:
    from maenas.structure import Structure

HELP = "train a network on a data set"
EXAMPLE = "maenas train damo-yolo-ns --data data.yaml --recipe small-data --image-size 320 --out runs/train/cells"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="structure file, published name, or checkpoint to go on from; not needed with --resume",
    )
    parser.add_argument("--data", metavar="PATH", help="data.yaml, union file, COCO file or folder with train and val")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--recipe",
        metavar="NAME",
        help="names or .yaml files joined by +, such as small-data or damo-yolo-s+one-gpu (default: the network's own)",
    )
    recipe.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    recipe.add_argument("--batch", type=int, metavar="N", help="images per step, all processes together")
    recipe.add_argument(
        "--image-size", metavar="N[xM]", help="height x width, multiples of 32 (default: the structure's)"
    )
    recipe.add_argument(
        "--max-minutes", type=float, metavar="T", help="wall time that schedule and evaluations fit into"
    )
    recipe.add_argument("--seed", type=int, metavar="N", help="of initial weights, order and augmentation (default: 0)")
    recipe.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="K=V", help="any field, such as optimizer.lr=0.01"
    )
    start = parser.add_argument_group("where the weights begin")
    start.add_argument("--weights", metavar="FILE", help="checkpoint of the same structure; its classes match by name")
    start.add_argument("--new-head", action="store_true", help="start all classes anew, also those it knows")
    start.add_argument(
        "--freeze", nargs="+", metavar="PART", help="do not train: backbone, neck, or stage N (the stem up to stage N)"
    )
    start.add_argument(
        "--teacher",
        metavar="CKPT",
        help="checkpoint whose feature maps are learnt from too (distillation; --set distill.K=V for the rest)",
    )
    how = parser.add_argument_group("how to run")
    how.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
    how.add_argument("--workers", type=int, metavar="N", help="processes that read and augment")
    how.add_argument("--tensorboard", action="store_true", help="also write events for TensorBoard")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/train/<model>)")
    output.add_argument("--resume", action="store_true", help="go on with the run in --out")
    output.add_argument("--force", action="store_true", help="remove the files of a former run in --out")
    output.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    output.add_argument("--json", action="store_true", help="print the final figures as one JSON object")


@dataclass(frozen=True, slots=True)
class _Job:
    """What the options ask for.

    Attributes:
        config: A `TrainConfig`.
        structure: The network, with its own number of classes.
        data: A `DataConfig`.
        out: The run's folder.
    """

    config: Any
    structure: Structure
    data: Any
    out: Path


def run(arguments: argparse.Namespace) -> int:
    """Train, write the run's folder, print a summary.

    Returns:
        0, or 143 or 130 where SIGTERM or SIGINT stopped a run that can be resumed.

    Raises:
        MaenasError: An option, the model or the data cannot be used, or the run diverged.
    """
    from maenas.cli.detector import bundled

    distributed = bundled("distributed")
    job = _job(arguments)
    device = job.config.train.device
    kind = (distributed.best_device() if device == "auto" else device).partition(":")[0]
    if kind == "cpu":
        bundled("cpu_memory").keep_freed_memory()
    with distributed.joined_processes(os.environ, device=kind) as processes:
        if arguments.dry_run:
            if processes.is_first:
                _print_plan(job, as_json=arguments.json)
            return 0
        callbacks = [_progress()] if processes.is_first else []
        result = bundled("train").train(
            job.config,
            job.structure,
            job.data,
            out=job.out,
            resume=arguments.resume,
            force=arguments.force,
            callbacks=callbacks,
            processes=processes,
        )
    if processes.is_first:
        _report(result, as_json=arguments.json)
    stopped = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}.get(result.ended_by)
    return 0 if stopped is None else 128 + stopped


def _job(arguments: argparse.Namespace) -> _Job:
    from maenas.cli.detector import bundled
    from maenas.published import PUBLISHED
    from maenas.structure import load_structure

    changes = _changes(arguments)
    model = arguments.model
    if model is None and not (arguments.resume and arguments.out):
        raise OptionError(
            "MODEL is missing; expected a structure file, a published name or a checkpoint, or --resume and --out"
        )
    out = Path(
        arguments.out or Path("runs", "train", model.lower() if model.lower() in PUBLISHED else Path(model).stem)
    )
    folder = bundled("run_folder").RunFolder(out)
    if arguments.resume and not folder.state.exists():
        raise OptionError(f"--resume: {out} holds no run to resume ({folder.state.name} is missing)")
    structure = load_structure(folder.structure) if model is None else _structure(model)
    recipe: Any = arguments.recipe
    if recipe is None:
        recipe = folder.config if arguments.resume else _default_recipe(model, structure)
    if model is not None:
        changes["model.name"] = structure.name
        if model.endswith(".safetensors"):
            if arguments.weights:
                raise OptionError(f"--weights is given, and {model} has weights already; expected one of them")
            changes["model.weights"] = model
    config = bundled("config").load_config(recipe, changes=changes, overrides=arguments.set)
    if not config.data.path:
        raise OptionError("--data is missing; expected a data.yaml, a COCO file or a folder with train and val")
    return _Job(config, structure, bundled("data.source").load_data(config.data.path), out)


def _structure(model: str) -> Structure:
    """The network of a checkpoint, a structure file or a published name."""
    from maenas.cli.detector import bundled
    from maenas.published import resolve_structure

    if model.endswith(".safetensors"):
        structure: Structure = bundled("checkpoint").load_checkpoint(model).structure
        return structure
    if model.endswith(".pth"):
        raise OptionError(f"{model}: names no structure; expected it as --weights, and its structure as MODEL")
    return resolve_structure(model)


def _default_recipe(model: str, structure: Structure) -> str:
    """The published recipe of the network, or of the published one that is most like it."""
    from maenas.published import PUBLISHED

    if model.endswith(".safetensors"):
        return "fine-tune"
    if model.lower() in PUBLISHED:
        return model.lower()
    return "damo-yolo-nm" if structure.backbone.family == "mob" else "damo-yolo-s"


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    from maenas.cli.question import parse_image_size

    given = {
        "data.path": arguments.data,
        "train.epochs": arguments.epochs,
        "train.batch_size": arguments.batch,
        "train.max_minutes": arguments.max_minutes,
        "train.seed": arguments.seed,
        "train.device": arguments.device,
        "data.workers": arguments.workers,
        "model.weights": arguments.weights,
        "model.class_head": "new" if arguments.new_head else None,
        "model.freeze": None if arguments.freeze is None else _frozen_parts(arguments.freeze),
        "distill.teacher": arguments.teacher,
        "model.image_size": None if arguments.image_size is None else list(parse_image_size(arguments.image_size)),
        "log.tensorboard": True if arguments.tensorboard else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _frozen_parts(words: list[str]) -> list[str]:
    """`neck stage 2` as ["neck", "stage 2"]."""
    parts: list[str] = []
    for word in words:
        if parts and parts[-1] == "stage":
            parts[-1] = f"stage {word}"
        else:
            parts.append(word)
    return parts


def _progress() -> Any:  # noqa: ANN401
    from maenas.cli.detector import bundled
    from maenas.cli.train_progress import progress_callback

    return progress_callback(bundled("callbacks").Callback)


def _print_plan(job: _Job, *, as_json: bool) -> None:
    from maenas.cli.detector import bundled
    from maenas.cli.report import console

    plan = bundled("run_plan").plan_run(job.config, job.structure, job.data)
    if as_json:
        print(json.dumps({**plan, "out": str(job.out), "config": job.config.to_dict()}))
        return
    screen = console()
    for name, value in {**plan, "out": job.out}.items():
        screen.print(f"{name.replace('_', ' ')}: {value}", markup=False, soft_wrap=True)


def _report(result: Any, *, as_json: bool) -> None:  # noqa: ANN401
    from maenas.cli.report import console

    if as_json:
        print(json.dumps(result.to_dict()))
        return
    screen = console()
    if result.best:
        figures = ", ".join(f"{name} {100 * value:.1f}" for name, value in result.best.items() if name != "epoch")
        screen.print(f"best (epoch {result.best['epoch']:.0f}): {figures}", markup=False, soft_wrap=True)
    minutes = result.seconds / 60
    screen.print(
        f"{result.ended_by}: {result.epochs} epochs, {result.iterations} steps, {minutes:.1f} min",
        markup=False,
        soft_wrap=True,
    )
    if result.ended_by.startswith("SIG"):
        note = f"stopped by {result.ended_by}; go on with: maenas train --resume --out {result.folder}"
        print(f"maenas: {note}", file=sys.stderr)
    else:
        screen.print(
            f"written: {result.folder}/best.safetensors, metrics.csv, curves.png", markup=False, soft_wrap=True
        )
