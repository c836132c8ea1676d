"""Which runtime opens which format of the export."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts import contract
from pipeline.chat.engine import Engine
from pipeline.chat.llama_cpp import LlamaCpp


class Runtime(NamedTuple):
    """open: a folder, threads and context (0: left to it) to an engine. package: what brings it."""

    open: Callable[[Path, int, int], Engine]
    package: str


def onnx_genai(folder: Path, threads: int, context: int) -> Engine:
    """onnxruntime-genai, whose tokenizer takes seconds to import."""
    from pipeline.chat.onnx_genai import OnnxGenai

    return OnnxGenai(folder, threads, context)


ENGINES = {  # by the format that a folder's manifest names
    "gguf": Runtime(LlamaCpp, "xllamacpp"),
    "onnx": Runtime(onnx_genai, "onnxruntime-genai"),
}


def open_folder(folder: Path, threads: int = 0, context: int = 0) -> Engine:
    """The model in a folder of the export, in the runtime of its format, after every file's hash was checked.

    Raises:
        ValueError: the folder is no export, was changed or is of a format that no engine opens; the runtime is not
            installed, or does not open it; the context that is asked for is longer than the model's.
    """
    chosen = contract.reading(folder, contract.INT4).get("format")
    if chosen not in ENGINES:
        others = [name for name in ENGINES if (folder.parent / name / contract.MANIFEST).is_file()]
        beside = f"; beside it lies {folder.parent / others[0]}" if others else "; see export.formats"
        raise ValueError(f"{folder} has the format {chosen!r}, and a chat opens {', '.join(ENGINES)}{beside}")
    runtime = ENGINES[chosen]
    try:
        return runtime.open(folder, threads, context)
    except ImportError as error:
        install = f"pip install --constraint constraints.txt {runtime.package}"
        raise ValueError(f"{chosen} needs {runtime.package}, which cannot be imported ({error}); `{install}`") from None
