"""Keeping freed memory: in a process of its own, since it cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from detector.cpu_memory import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

mapped_anew = new_pages()
assert keep_freed_memory()
new_pages()
assert new_pages() < mapped_anew / 10, (mapped_anew, new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_other_c_libraries_are_left_alone(monkeypatch):
    from detector.cpu_memory import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
