"""`maenas convert`: structures and weights between our formats and the official ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maenas.cli.targets import check_new_file

if TYPE_CHECKING:
    from maenas.structure import Structure

HELP = "translate structures and weights between the maenas formats and the official files"
EXAMPLE = "maenas convert structure damo-yolo-s --to list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be converted."""
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    structure = kinds.add_parser("structure", help="the description of a network", allow_abbrev=False)
    structure.add_argument("input", metavar="IN", help="published name, structure file, or official file")
    structure.add_argument("output", metavar="OUT", nargs="?", help="file to write (default: standard output)")
    forms = ["maenas", "list", "text", "json"]
    structure.add_argument("--to", choices=forms, default="maenas", help="form to write (default: maenas)")
    structure.add_argument("--dialect", choices=["v1", "v2"], help="class names of an official form (default: v1)")
    structure.add_argument(
        "--family", choices=["res", "mob", "csp", "kxkx"], help="how to read an official file (default: res or csp)"
    )
    structure.add_argument(
        "--recipe", metavar="NAME", help="published network or structure file that gives an official file neck and head"
    )
    structure.add_argument("--add-p2", action="store_true", help="add a level at stride 4, for small objects")
    structure.add_argument("--index", type=int, metavar="N", help="entry of an official search result (default: 0)")
    structure.add_argument("--force", action="store_true", help="overwrite OUT")

    weights = kinds.add_parser(
        "weights",
        help="a trained checkpoint",
        description="An official checkpoint to ours, or back.",
        epilog="example: maenas convert weights damoyolo_tinynasL20_T.pth t.safetensors --structure damo-yolo-t",
        allow_abbrev=False,
    )
    weights.add_argument("input", metavar="IN", help="official checkpoint (.pth), or ours with --to official")
    weights.add_argument("output", metavar="OUT", help="file to write: .safetensors, or .pth with --to official")
    weights.add_argument(
        "--to", choices=["maenas", "official"], default="maenas", help="format to write (default: maenas)"
    )
    weights.add_argument(
        "--structure", metavar="NAME", help="published name or structure file that an official checkpoint belongs to"
    )
    weights.add_argument(
        "--num-classes", type=int, metavar="N", help="classes of an official checkpoint, if not the structure's"
    )
    weights.add_argument(
        "--names", metavar="FILE", help="class names, one a line (default: COCO's for 80 classes, else class_0, ...)"
    )
    weights.add_argument(
        "--drop-background", action="store_true", help="leave out the background channel of a file trained with legacy"
    )
    weights.add_argument(
        "--form", choices=["train", "fused"], help="with two branches or merged ones (default: as in IN)"
    )
    weights.add_argument("--force", action="store_true", help="overwrite OUT")
    weights.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Convert and print or write the result.

    Raises:
        StructureError: The structure cannot be read, the form cannot express it, or an option does nothing.
        CheckpointError: The weights cannot be read or do not fit.
        OutputError: OUT exists already or cannot be written.
    """
    return {"structure": _structure, "weights": _weights}[arguments.what](arguments)


def _structure(arguments: argparse.Namespace) -> int:
    from maenas.errors import StructureError
    from maenas.files import write_text_atomically
    from maenas.published import resolve_structure
    from maenas.structure import with_fine_level

    if arguments.to == "maenas" and arguments.dialect:
        raise StructureError(f"--dialect is {arguments.dialect}; expected it with --to list, text or json only")
    recipe = None if arguments.recipe is None else resolve_structure(arguments.recipe)
    structure = resolve_structure(arguments.input, family=arguments.family, recipe=recipe, index=arguments.index)
    if arguments.add_p2:
        structure = with_fine_level(structure)
    text = _text(structure, arguments.to, arguments.dialect or "v1")
    if arguments.output is None:
        print(text, end="")
        return 0
    write_text_atomically(_new_file(arguments.output, force=arguments.force), text)
    return 0


def _new_file(name: str, *, force: bool) -> Path:
    path = Path(name)
    check_new_file(path, force=force)
    return path


def _text(structure: Structure, form: str, dialect: str) -> str:
    import json

    from maenas.official_export import export_official

    if form == "maenas":
        return json.dumps(structure.to_dict(), indent=2) + "\n"
    return export_official(structure, form=form, dialect=dialect)


def _weights(arguments: argparse.Namespace) -> int:
    import json

    from maenas.errors import OutputError

    suffix = {"maenas": ".safetensors", "official": ".pth"}[arguments.to]
    if Path(arguments.output).suffix != suffix:
        raise OutputError(f"{arguments.output}: expected a name that ends with {suffix}, for --to {arguments.to}")
    path = _new_file(arguments.output, force=arguments.force)
    record = _to_official(arguments, path) if arguments.to == "official" else _to_ours(arguments, path)
    if arguments.json:
        print(json.dumps({"output": str(path), "format": arguments.to, **record}))
        return 0
    print(
        f"{path}: {record['structure']}, {record['params']:,} parameters, {record['form']} form, "
        f"{record['num_classes']} classes ({', '.join(record['class_names'][:2])}, ...)"
    )
    return 0


def _to_ours(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    from dataclasses import replace

    from maenas import __version__
    from maenas.cli.detector import bundled
    from maenas.errors import StructureError
    from maenas.files import sha256_of
    from maenas.published import resolve_structure

    if arguments.structure is None:
        raise StructureError("--structure is missing; expected it, because an official checkpoint names no structure")
    structure = resolve_structure(arguments.structure)
    if arguments.num_classes is not None:
        try:
            head = replace(structure.head, num_classes=arguments.num_classes)
        except ValueError as error:
            raise StructureError(f"--num-classes: {error}") from error
        structure = replace(structure, head=head)
    names = _class_names(arguments.names, structure.head.num_classes)
    source = Path(arguments.input)
    model = bundled("convert_official").load_official(source, structure, drop_background=arguments.drop_background)
    model = _in_form(model, arguments)
    checkpoint = bundled("checkpoint")
    checkpoint.save_checkpoint(
        checkpoint.Checkpoint(
            structure,
            model.state_dict(),
            names,
            provenance={
                "source": source.name,
                "sha256": sha256_of(source),
                "format": "official",
                "converter": f"maenas {__version__}",
            },
        ),
        path,
    )
    return _record(model, names)


def _to_official(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    from maenas.cli.detector import bundled
    from maenas.errors import StructureError

    for option in ("structure", "num_classes", "names", "drop_background"):
        given = getattr(arguments, option)
        if given is not None and given is not False:
            raise StructureError(
                f"--{option.replace('_', '-')} is given; expected it with --to maenas only: our checkpoint holds it"
            )
    model = _in_form(bundled("checkpoint").load_checkpoint(arguments.input).build(), arguments)
    bundled("convert_official").save_official(model, path)
    return _record(model, model.class_names)


def _in_form(model: Any, arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """The detector in the form asked for.

    Raises:
        CheckpointError: Branches that are merged cannot be taken apart.
    """
    from maenas.cli.detector import bundled

    merged = bundled("checkpoint").is_merged(model.state_dict())
    if arguments.form == "train" and merged:
        raise bundled("errors").CheckpointError(
            f"{arguments.input}: its branches are merged and cannot be taken apart; expected --form fused"
        )
    return bundled("reparam").fuse_reparam(model) if arguments.form == "fused" else model


def _record(model: Any, names: tuple[str, ...]) -> dict[str, Any]:  # noqa: ANN401
    from maenas.cli.detector import bundled

    return {
        "structure": model.structure.name,
        "digest": model.structure.digest,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "form": "fused" if bundled("checkpoint").is_merged(model.state_dict()) else "train",
        "num_classes": len(names),
        "class_names": list(names),
    }


def _class_names(file: str | None, num_classes: int) -> tuple[str, ...]:
    """One name per class: from a file, COCO's for 80 classes, or numbers.

    Raises:
        StructureError: The file cannot be read, has an empty line, or another number of names.
    """
    from maenas.cli.detector import bundled
    from maenas.errors import StructureError

    if file is None:
        coco: tuple[str, ...] = bundled("coco_names").COCO_NAMES
        return coco if num_classes == len(coco) else tuple(f"class_{label}" for label in range(num_classes))
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "no UTF-8 text"
        raise StructureError(f"{file}: cannot be read ({reason}); expected class names, one a line") from error
    names = tuple(line.strip() for line in lines)
    if "" in names:
        raise StructureError(f"{file}: line {names.index('') + 1} is empty; expected a class name")
    if len(names) != num_classes:
        raise StructureError(f"{file}: has {len(names)} class names; expected {num_classes}, one per class")
    return names
