"""ExecuTorch itself, which is no default dependency."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.export import extras

PACKAGE = "executorch"
INSTALL = extras.install("executorch")


def installed() -> str:
    """Its version.

    Raises:
        ValueError: it is not installed.
    """
    return extras.installed(PACKAGE, f"{PACKAGE}, which compiles and runs it, is not installed", INSTALL)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that ExecuTorch and torchao give about themselves when they are imported and at work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def register() -> None:
    """Make the operators known that a program has: to torch, and to ExecuTorch's runtime."""
    installed()
    with quietly():
        import executorch.extension.llm.custom_ops.custom_ops
        import executorch.kernels.quantized  # noqa: F401
        import torch.ao.quantization.fx._decomposed  # noqa: F401
