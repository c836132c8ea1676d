"""Memory that was freed goes back to the system.

glibc keeps what is freed, in pieces between others that are in use, and a large tensor that fits into none of them
takes more: a loop of forwards and backwards grows to twice what it holds at any time.
"""

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Give back what is free; other C libraries than glibc, which have no such call, are left as they are."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
