"""`maenas convert`: structures between our format and the official ones."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maenas.structure import Structure

HELP = "translate structures between the maenas format and the official files"
EXAMPLE = "maenas convert structure damo-yolo-s --to list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("what", choices=["structure"], help="what to convert")
    parser.add_argument("input", metavar="IN", help="published name, structure file, or official file")
    parser.add_argument("output", metavar="OUT", nargs="?", help="file to write (default: standard output)")
    forms = ["maenas", "list", "text", "json"]
    parser.add_argument("--to", choices=forms, default="maenas", help="form to write (default: maenas)")
    parser.add_argument("--dialect", choices=["v1", "v2"], help="class names of an official form (default: v1)")
    parser.add_argument(
        "--family", choices=["res", "mob", "csp", "kxkx"], help="how to read an official file (default: res or csp)"
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="published network or structure file that gives an official file neck and head"
    )
    parser.add_argument("--index", type=int, metavar="N", help="entry of an official search result (default: 0)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")


def run(arguments: argparse.Namespace) -> int:
    """Convert and print or write the result.

    Raises:
        StructureError: IN cannot be read, or the form cannot express it.
        OutputError: OUT exists already or cannot be written.
    """
    from pathlib import Path

    from maenas.errors import OutputError, StructureError
    from maenas.files import write_text_atomically
    from maenas.published import resolve_structure

    if arguments.to == "maenas" and arguments.dialect:
        raise StructureError(f"--dialect is {arguments.dialect}; expected it with --to list, text or json only")
    recipe = None if arguments.recipe is None else resolve_structure(arguments.recipe)
    structure = resolve_structure(arguments.input, family=arguments.family, recipe=recipe, index=arguments.index)
    text = _text(structure, arguments.to, arguments.dialect or "v1")
    if arguments.output is None:
        print(text, end="")
        return 0
    path = Path(arguments.output)
    if path.exists() and not arguments.force:
        raise OutputError(f"{path}: exists already; expected a new file, or --force")
    write_text_atomically(path, text)
    return 0


def _text(structure: Structure, form: str, dialect: str) -> str:
    import json

    from maenas.official_export import export_official

    if form == "maenas":
        return json.dumps(structure.to_dict(), indent=2) + "\n"
    return export_official(structure, form=form, dialect=dialect)
