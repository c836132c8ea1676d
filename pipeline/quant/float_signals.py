"""A switch under which a quantized model's inputs, keys and values stay as they are, for checks that rounding hides."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FLOAT = ContextVar("float_signals", default=False)


@contextmanager
def float_signals() -> Iterator[None]:
    """No input, key or value is quantized inside, in this thread, whatever `quantize_signals` has done to a model."""
    before = _FLOAT.set(True)
    try:
        yield
    finally:
        _FLOAT.reset(before)


def are_float() -> bool:
    """Whether that is so now."""
    return _FLOAT.get()
