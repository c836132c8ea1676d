"""Which float type `auto` takes: by the processor's own flags, torch's limits, and the device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.artifacts import environment
from pipeline.knobs import params
from pipeline.models import float_type

ROOT = Path(__file__).parents[3]
NARROW = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.mark.parametrize("flags", [{"avx512_bf16": True}, {"amx_bf16": True, "avx512_bf16": True}, {"sve_bf16": True}])
def test_bfloat16_is_taken_where_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool]
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "cpu_name": "x", **flags})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert float_type.computes_in() == "bfloat16"
    assert environment.bfloat16_instructions(torch) == sorted(flags)


def test_float32_is_taken_where_it_has_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True, "avx512_bf16": False})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert float_type.computes_in() == "float32"
    assert environment.bfloat16_instructions(torch) == []


def test_what_the_environment_takes_away_counts_as_not_there():
    code = "from pipeline.models import float_type; print(float_type.computes_in())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **NARROW}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["float32"]


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_asked_itself(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert float_type.computes_in("cuda") == expected


def test_a_knob_that_names_a_type_is_what_it_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(float_type, "computes_in", lambda where: f"what {where} computes in")
    assert [float_type.dtype(knob) for knob in ("float32", "bfloat16", "auto")] == [
        "float32",
        "bfloat16",
        "what cpu computes in",
    ]
    assert float_type.dtype("auto", "cuda") == "what cuda computes in"


def test_every_dtype_knob_settles_and_all_but_the_scores_are_auto_as_shipped(in_the_root: None):
    """What is scored are the numbers that the export holds, which bfloat16 would round."""
    loaded = params.load()
    sections = {name: section for name, section in vars(loaded).items() if hasattr(section, "dtype")}
    assert {name: section.dtype for name, section in sections.items()} == {
        **dict.fromkeys(("synthesize", "calibrate", "targets", "distill"), "auto"),
        "evaluate": "float32",
    }
    for section in sections.values():
        assert float_type.settled(section).dtype in ("float32", "bfloat16")


def test_no_stage_uses_a_dtype_that_is_not_settled():
    """A stage whose section has the knob settles the section before anything reads it."""
    for name in ("synthesize", "calibrate", "targets", "distill", "evaluate"):
        assert "float_type.settled(" in (ROOT / f"stages/{name}.py").read_text(), name
