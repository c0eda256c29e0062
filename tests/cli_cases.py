"""What the command line answers, shared by the tests of its verbs."""

from __future__ import annotations

import pytest

from maenas.cli.main import main


def answer(capture: pytest.CaptureFixture[str], *words: object) -> tuple[object, str, str]:
    """Run a command in this process: exit code, standard output, standard error."""
    capture.readouterr()
    try:
        code: object = main([str(word) for word in words])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capture.readouterr()
    return code, captured.out, captured.err
