"""Which float type this machine computes in: what the knob `dtype: auto` takes.

A processor without instructions for bfloat16 computes six to seven times slower in it than in float32; one with them,
two to four times faster. torch is imported where it is asked, since stages that do without it import this, too.
"""

import dataclasses
from typing import Any, TypeVar

from pipeline.artifacts import environment

Section = TypeVar("Section", bound=Any)  # of params.yaml, with a knob `dtype`
AUTO = "auto"


def settled(knobs: Section, where: str = "cpu") -> Section:
    """A section of knobs with `dtype` as it is on a kind of device (cpu, cuda)."""
    return dataclasses.replace(knobs, dtype=dtype(knobs.dtype, where))


def dtype(knob: str, where: str = "cpu") -> str:
    """The float type that a `dtype` knob asks for: the knob's own, or for `auto` what such a device computes in."""
    return computes_in(where) if knob == AUTO else knob


def computes_in(where: str = "cpu") -> str:
    """bfloat16 where a kind of device multiplies matrices of it fast (AMX, AVX-512 BF16, Arm's BF16, a GPU's own), else
    float32.

    What an environment variable takes away from oneDNN (ONEDNN_MAX_CPU_ISA) counts as not there.
    """
    import torch

    if where != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    usable = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if usable and environment.bfloat16_instructions(torch) else "float32"
