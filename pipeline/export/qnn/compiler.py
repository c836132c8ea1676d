"""The compiler for Hexagon NPUs, in a process of its own: it takes gigabytes, and may end its process.

It is in Qualcomm's plugin for onnxruntime, which only those who export for an NPU install.
"""

import signal
import subprocess
import sys
from pathlib import Path

from pipeline.export import extras

PACKAGE = "onnxruntime-qnn"
INSTALL = extras.install("qnn")
CHIPS = {"v73": 60, "v75": 57, "v79": 69, "v81": 87}  # by architecture of the NPU, QNN's number of a chip that has it
GRAPHS = ("chunk.onnx", "token.onnx")  # of a prompt's tokens, many at once, and of one token
ROOT = Path(__file__).parents[3]


def installed() -> str:
    """The version of the plugin.

    Raises:
        ValueError: it is not installed.
    """
    return extras.installed(PACKAGE, f"qnn is compiled and run by {PACKAGE}, which is not installed", INSTALL)


def compile_graphs(graphs: Path, out: Path, architecture: str, shared: bool) -> None:
    """Write a context of each of GRAPHS: an ONNX file of one node, and a binary beside it.

    Args:
        graphs: their folder. architecture: a key of CHIPS. shared: one binary for all of them, which holds their
            weights once.

    Raises:
        ValueError: the compiler is not installed, or ends without a context; with its last line.
    """
    installed()
    arguments = [str(graphs.resolve()), str(out.resolve()), architecture, str(int(shared))]
    command = [sys.executable, "-m", "pipeline.export.qnn.session", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        ended = f"signal {signal.Signals(-done.returncode).name}" if done.returncode < 0 else "an error"
        raise ValueError(f"{PACKAGE} ends with {ended} where it compiles for {architecture}: {' '.join(said[-1:])}")
