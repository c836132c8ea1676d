"""The runtimes that exports are proven in."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from pipeline.runtimes import hugging_face, llama_cpp
from pipeline.runtimes.opened import Open


class Runtime(NamedTuple):
    """A runtime, and what is asked of it.

    formats: that it opens. exact: it computes in float32 with the trained numbers, so its logits are the student's.
    package: by whose version it is told. install: the command that brings it.
    """

    formats: tuple[str, ...]
    open: Open
    exact: bool
    package: str
    install: str


INSTALL = "pip install --constraint constraints.txt --editable ."
RUNTIMES = {
    "transformers": Runtime(
        ("compressed-tensors", "dequantized"), hugging_face.open_export, True, "transformers", INSTALL
    ),
    "llama.cpp": Runtime(("gguf",), llama_cpp.open_export, False, "xllamacpp", INSTALL),
}


def runtimes_of(format_name: str) -> dict[str, Runtime]:
    """Those that open a format, by their names."""
    return {name: runtime for name, runtime in RUNTIMES.items() if format_name in runtime.formats}


def versions(formats: Sequence[str]) -> dict[str, str]:
    """The version of each runtime that opens one of these formats.

    Raises:
        ValueError: some are not installed; a line each, with the command that installs it.
    """
    needed = {name: runtime for format_name in formats for name, runtime in runtimes_of(format_name).items()}
    installed, problems = dict[str, str](), list[str]()
    for name, runtime in needed.items():
        try:
            installed[name] = version(runtime.package)
        except PackageNotFoundError:
            problems.append(
                f"{name} is not installed ({runtime.package}), and its exports are to be proven in it; "
                f"`{runtime.install}`"
            )
    if problems:
        raise ValueError("\n  ".join(problems))
    return installed
