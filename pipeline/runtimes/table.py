"""The runtimes that exports are proven in."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from pipeline.export.executorch import package as executorch_package
from pipeline.export.qnn import compiler as qnn_compiler
from pipeline.runtimes import executorch, genai, hugging_face, in_mlx, llama_cpp, onnx_runtime, qnn
from pipeline.runtimes.limits import SIMULATED, Limits
from pipeline.runtimes.opened import Open

INSTALL = "pip install --constraint constraints.txt --editable ."
INSTALL_MLX = "pip install --constraint constraints.txt --editable '.[mlx]'"


class Runtime(NamedTuple):
    """A runtime, and what is asked of it.

    formats: that it opens. exact: it computes in float32 with the trained numbers, so its logits are the student's.
    package: by whose version it is told. on_grids: whether it is held to the student with inputs and KV cache on their
    grids, or in float. install: the command that brings it. limits: of the text, where it is a simulator.
    """

    formats: tuple[str, ...]
    open: Open
    exact: bool
    package: str
    on_grids: bool = False
    install: str = INSTALL
    limits: Limits | None = None


RUNTIMES = {
    "transformers": Runtime(("compressed-tensors", "dequantized"), hugging_face.open_export, True, "transformers"),
    "llama.cpp": Runtime(("gguf",), llama_cpp.open_export, False, "xllamacpp"),
    "onnxruntime": Runtime(("onnx",), onnx_runtime.open_export, False, "onnxruntime", on_grids=True),
    "onnxruntime-float": Runtime(("onnx",), onnx_runtime.open_in_float, True, "onnxruntime"),
    "onnxruntime-genai": Runtime(("onnx",), genai.open_export, False, "onnxruntime-genai", on_grids=True),
    "mlx": Runtime(
        ("mlx",),
        in_mlx.open_export,
        True,
        "mlx-lm",
        install=INSTALL_MLX,
    ),
    "qnn": Runtime(
        ("qnn",),
        qnn.open_export,
        False,
        qnn_compiler.PACKAGE,
        on_grids=True,
        install=qnn_compiler.INSTALL,
        limits=SIMULATED,
    ),
    "executorch": Runtime(
        ("executorch",),
        executorch.open_export,
        False,
        executorch_package.PACKAGE,
        on_grids=True,
        install=executorch_package.INSTALL,
    ),
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
