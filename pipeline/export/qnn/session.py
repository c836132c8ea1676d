"""Sessions of onnxruntime on a Hexagon NPU (HTP), through Qualcomm's plugin onnxruntime-qnn, and the compiler in it.

The same library compiles for a chip on any machine and, on x86-64, simulates the NPU, some thousand times slower.

    python -m pipeline.export.qnn.session GRAPHS OUT ARCHITECTURE SHARED     # see compiler.compile_graphs
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from pipeline.export.qnn.compiler import CHIPS, GRAPHS, installed

PROVIDER = "QNNExecutionProvider"
FATAL = 4  # severity of what onnxruntime logs; what it raises says the rest


def open_session(file: Path, architecture: str, entries: Mapping[str, str], threads: int = 1) -> Any:
    """An InferenceSession of a graph, or of a compiled one, all of which is on the NPU.

    Args:
        architecture: a key of CHIPS. entries: of the session's configuration.

    Raises:
        ValueError: the plugin is not installed.
        Exception: what onnxruntime raises, of classes under no common one, where a node is not for the NPU.
    """
    installed()
    import onnxruntime_qnn  # here: so that its absence is told

    if PROVIDER not in {device.ep_name for device in onnxruntime.get_ep_devices()}:
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    device = next(device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, FATAL
    for key, value in {"session.disable_cpu_ep_fallback": "1", **entries}.items():
        options.add_session_config_entry(key, value)
    settings = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "htp_arch": architecture.removeprefix("v"),
        "soc_model": str(CHIPS[architecture]),
        "enable_htp_fp16_precision": "1",
    }
    options.add_provider_for_devices([device], settings)
    return onnxruntime.InferenceSession(str(file), options)


def compile_graphs(graphs: Path, out: Path, architecture: str, shared: bool) -> None:
    """Write the contexts, see `compiler.compile_graphs`; changes this process's folder.

    Graphs are opened by their names alone: the name of a context's node has a hash of what opened it.
    """
    os.chdir(graphs)
    for name in GRAPHS:
        entries = {"ep.context_enable": "1", "ep.context_file_path": str(out / name), "ep.context_embed_mode": "0"}
        if shared:
            entries["ep.share_ep_contexts"] = "1"
            entries |= {"ep.stop_share_ep_contexts": "1"} if name == GRAPHS[-1] else {}
        open_session(Path(name), architecture, entries)


def main() -> None:
    graphs, out, architecture, shared = sys.argv[1:]
    try:
        compile_graphs(Path(graphs), Path(out), architecture, shared == "1")
    except Exception as error:  # onnxruntime has classes of its own for it, under no common one
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
