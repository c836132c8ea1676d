"""Memory that was freed goes back to the system, where the C library can do that."""

import ctypes
import os
from pathlib import Path

import pytest

from pipeline.models import memory


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_is_freed_between_what_is_in_use_goes_back():
    blocks = [b"x" * 100_000 for _ in range(2000)]  # too small for pages of their own
    blocks = blocks[::2]
    before = resident()
    memory.give_back()
    assert before - resident() > 80e6
    assert len(blocks) == 1000


def test_a_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.give_back()
