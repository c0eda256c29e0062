"""The `maenas` command: one verb a module, heavy imports inside the verbs, user errors as one line and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from maenas import __version__
from maenas.cli.detector import missing_package
from maenas.errors import MaenasError

COMMANDS = {
    "run": "maenas.cli.run",
    "search": "maenas.cli.search",
    "front": "maenas.cli.front",
    "explain": "maenas.cli.explain",
    "train": "maenas.cli.train",
    "export": "maenas.cli.export",
    "predict": "maenas.cli.predict",
    "eval": "maenas.cli.eval",
    "profile": "maenas.cli.profile",
    "benchmark": "maenas.cli.benchmark",
    "plot": "maenas.cli.plot",
    "eval-proxy": "maenas.cli.eval_proxy",
    "table": "maenas.cli.table",
    "show-data": "maenas.cli.show_data",
    "convert": "maenas.cli.convert",
    "doctor": "maenas.cli.doctor",
    "sample-data": "maenas.cli.sample_data",
}
"""Verb to module; a module has HELP, EXAMPLE, add_arguments(parser) and run(arguments)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 on success, 2 when the user's input was wrong, 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    warnings.formatwarning = _warning_line
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except MaenasError as error:
        print(f"maenas: error: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # Of a function that imports torch when it is called.
        reason = missing_package(error)
        if reason is None:
            raise
        print(f"maenas: error: {reason}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, a pager) has gone: nothing to say, and nothing more to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError) as error:
        # A full disk, a closed descriptor: nothing a traceback would explain better.
        print(f"maenas: error: {_in_one_line(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("maenas: interrupted; finished files are whole, unfinished ones were not written", file=sys.stderr)
        return 130


def _in_one_line(error: BaseException) -> str:
    """The message; what a file put into it can neither break the line nor steer the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(error))


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of a library, such as of letters that a font lacks, without the place in the code."""
    return f"maenas: warning: {' '.join(str(message).split())}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maenas",
        description="From a device and a millisecond budget to a real-time object detector.",
        epilog="example: maenas search --budget 3.8ms --device t4 --block res",
    )
    parser.add_argument("--version", action="version", version=f"maenas {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        verb_parser = verbs.add_parser(
            verb,
            help=module.HELP,
            description=module.HELP[:1].upper() + module.HELP[1:] + ".",
            epilog=f"example: {module.EXAMPLE}",
            allow_abbrev=False,
        )
        module.add_arguments(verb_parser)
        verb_parser.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
