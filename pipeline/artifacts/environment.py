"""What a stage runs with and on: that it has the versions which versions.yaml pins, and a record of all that it has.

The record is an output of the stage that no other stage reads, so it is kept with the numbers, version by version, and
a stage that ran on another machine makes nothing else stale.
"""

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import contract
from pipeline.artifacts.inputs import Inputs

PINS = Path("versions.yaml")
KNOBS = Path("params.yaml")
SETTINGS = ("ATEN_", "DNNL_", "MKL_", "ONEDNN_")  # variables that change which instructions are taken
INSTALL = "pip install --constraint constraints.txt --editable ."
PYTHON = "python"  # its pin, whose help topics are the text that perplexity is measured on
TOPICS = "pydoc"  # as evaluate.text names them


def check(file: Path = PINS, knobs: Path = KNOBS) -> dict[str, str]:
    """The versions that are installed of the libraries that the file pins.

    Where the knobs say that perplexity is measured on Python's own help topics, Python's version is held against its
    pin, too; it may be any else.

    Raises:
        ValueError: the file is missing or no mapping of names to versions, or another version is installed of some
            library, or none; all of them are named.
    """
    try:
        pins = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: {getattr(error, 'strerror', error)}; `git restore {file}`") from None
    if not isinstance(pins, dict) or not all(isinstance(pin, str) for pin in pins.values()):
        raise ValueError(f'{file}: expected library: "version", one a line, in quotes; got {pins!r}')
    pinned_python = pins.pop(PYTHON, None)
    installed = {library: _installed(library) for library in pins}
    wrong = [
        f"{library} {pins[library]} is pinned, and {have or 'none'} is installed"
        for library, have in installed.items()
        if not fits(pins[library], have)
    ]
    if wrong:
        remedy = f"`{INSTALL}`, or pin what is installed, and the stages that depend on it run anew"
        raise ValueError("\n  ".join([f"{file} has {len(wrong)} problem(s); {remedy}:", *wrong]))
    running = platform.python_version()
    if pinned_python not in (None, running) and _reads_topics(knobs):
        raise ValueError(
            f"{file} pins Python {pinned_python}, and this is {running}. Perplexity's text (evaluate.text: {TOPICS}) "
            "comes with Python and changes with it. `python -m pipeline.artifacts.environment` pins this one, and "
            f"`evaluate` scores all variants anew; or run Python {pinned_python}, or set evaluate.text to a "
            "file of your own"
        )
    return installed


def pin_python(file: Path = PINS) -> str:
    """Make the Python that runs this the pinned one; the version that was pinned before, or an empty one.

    Raises:
        ValueError: the file is missing.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; `git restore {file}`") from None
    line = rf'^{PYTHON}: "(.*)"$'
    before = re.search(line, text, re.MULTILINE)
    now = f'{PYTHON}: "{platform.python_version()}"'
    if before is None:
        contract.write_text(file, f"{text.rstrip()}\n{now}\n")
    elif before[0] != now:
        contract.write_text(file, re.sub(line, now, text, flags=re.MULTILINE))
    return before[1] if before else ""


def _reads_topics(knobs: Path) -> bool:
    """Whether the knobs ask for Python's own help topics; knobs that cannot be read are for others to complain of."""
    try:
        return bool(yaml.safe_load(knobs.read_text(encoding="utf-8"))["evaluate"]["text"] == TOPICS)
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return False


def fits(pin: str, installed: str) -> bool:
    """Whether a version is the pinned one; a local part, as in 2.13.0+cpu, is another build of the same version."""
    return pin in (installed, installed.partition("+")[0])


def record(file: Path, libraries: dict[str, str], reads: Inputs, accelerated: bool = False, dtype: str = "") -> None:
    """Write down the interpreter, the libraries, the processor with its instructions, threads, and devices as JSON.

    It holds no time, host name or path of the machine's: the same machine gives the same bytes.

    Args:
        libraries: their versions. reads: what the stage reads, of which the knobs and the code are written down; hashes
            of data are in manifests. accelerated: whether GPUs are computed with where there are any.
        dtype: the float type that the stage computes in; empty: it has no such knob.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    contract.write_json(
        file,
        {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "libraries": libraries,
            "knobs": reads.knobs,
            "code": reads.code,
            **_arithmetic(accelerated, dtype),
        },
    )


def machine() -> dict[str, Any]:
    """What the last bits of a result depend on besides knobs, code and libraries: another processor, instructions,
    number of threads or processes, device or setting of the libraries sums in another order.
    """
    settings = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    return {
        "processor": processor(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "settings": settings,
        **_arithmetic(accelerated=True),
    }


def where(accelerated: bool) -> str:
    """The kind of device that a stage computes on: cuda where it uses GPUs and there are any, else cpu."""
    torch = sys.modules.get("torch")
    return "cuda" if accelerated and torch is not None and torch.cuda.device_count() else "cpu"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as Linux has it, or else as Python does."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _arithmetic(accelerated: bool, dtype: str = "") -> dict[str, Any]:
    """Threads, instructions, devices and float type that torch computes with; nothing of a stage without torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    devices = _devices(torch) if accelerated else []
    return {
        "torch_build": torch.__version__.partition("+")[2],  # PyPI's wheels do not say it in their metadata
        "threads": torch.get_num_threads(),
        "instructions": _instructions(torch),
        "devices": devices or ["cpu"],
        **({"dtype": dtype} if dtype else {}),
    }


def _devices(torch: Any) -> list[str]:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"{name}, CUDA {torch.version.cuda}" for name in names]


def _instructions(torch: Any) -> list[str]:
    """The vector instructions that torch's own kernels use, and those for bfloat16 that the processor has."""
    return [torch.backends.cpu.get_cpu_capability(), *bfloat16_instructions(torch)]


def bfloat16_instructions(torch: Any) -> list[str]:
    """The processor's instructions for products of bfloat16, by torch's names, in alphabetical order.

    With them such products are summed in another order, and scores differ in the third digit.
    """
    return sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True and name.endswith("bf16"))


def _installed(library: str) -> str:
    """A library's version; empty where it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def main() -> None:
    """Pin the Python that runs this, and say so where it was another."""
    try:
        before = pin_python()
    except ValueError as error:
        sys.exit(str(error))
    if before != platform.python_version():
        print(
            f"{PINS}: Python {before or 'was not pinned'} -> {platform.python_version()}; the text that perplexity is "
            "measured on comes with it, so `evaluate` scores anew"
        )


if __name__ == "__main__":
    main()
