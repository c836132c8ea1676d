"""How long the whole run will take: against stages that were measured, and in what it says."""

import dataclasses
from pathlib import Path

import pytest

from pipeline import estimate, params
from pipeline.estimate import Pace
from tests import tiny

ROOT = Path(__file__).parents[2]
# SmolLM2-135M on two cores with AVX2 alone, in float32: forward and decoding in tokens a second, float32 products
AVX2 = Pace(forward=392, exact=392, decoding=337, operations=94e9, products=8.66e10, layers=30)
MEASURED = {"synthesize": 336, "calibrate": 1025, "analyze": 136, "targets": 179, "distill": 566, "evaluate": 520}


@pytest.fixture
def knobs(monkeypatch: pytest.MonkeyPatch) -> params.Params:
    """Those with which the stages were measured."""
    monkeypatch.chdir(ROOT)  # some are paths relative to it
    known = params.load()
    changes = {
        "synthesize": {"sequences": 272, "held_out": 16, "length": 256},
        "calibrate": {"method": "gptq", "sequences": 128, "fisher": True},
        "analyze": {"sequences": 8, "sensitivity_sequences": 2},
        "targets": {"share": 0.0},
        "distill": {"steps": 60, "batch": 4},
        "inspect": {"sensitivity_sequences": 0},
        "evaluate": {"windows": 16, "window": 1024, "source": "folder", "limit": 0},
    }
    sections = {name: dataclasses.replace(getattr(known, name), **own) for name, own in changes.items()}
    return dataclasses.replace(known, **sections)


@pytest.mark.parametrize("stage", MEASURED)
def test_stages_take_what_was_measured(stage: str, knobs: params.Params):
    assert estimate.seconds(knobs, AVX2, on_gpu=False)[stage] == pytest.approx(MEASURED[stage], rel=0.2)


def test_a_machine_twice_as_fast_takes_half_the_time(knobs: params.Params):
    fast = Pace(2 * AVX2.forward, 2 * AVX2.exact, 2 * AVX2.decoding, 2 * AVX2.operations, AVX2.products, AVX2.layers)
    slow, quick = (estimate.seconds(knobs, pace, on_gpu=False) for pace in (AVX2, fast))
    assert quick == pytest.approx({stage: took / 2 for stage, took in slow.items()})


def test_what_runs_on_a_gpu_whose_pace_is_not_known_is_left_out(knobs: params.Params):
    assert {"targets", "distill"}.isdisjoint(estimate.seconds(knobs, AVX2, on_gpu=True))


@pytest.mark.parametrize(
    ("changes", "less"),
    [
        ({"calibrate": {"fisher": False}}, ["calibrate"]),
        ({"calibrate": {"method": "rtn"}}, ["calibrate"]),
        ({"evaluate": {"limit": 5}}, ["evaluate"]),
        ({"distill": {"steps": 30}}, ["distill"]),
        ({"synthesize": {"sequences": 200}}, ["synthesize", "targets"]),
        ({"analyze": {"sensitivity_sequences": 0}}, ["analyze"]),
    ],
)
def test_knobs_change_the_stages_that_they_are_of(changes: dict, less: list[str], knobs: params.Params):
    sections = {name: dataclasses.replace(getattr(knobs, name), **own) for name, own in changes.items()}
    before = estimate.seconds(knobs, AVX2, on_gpu=False)
    after = estimate.seconds(dataclasses.replace(knobs, **sections), AVX2, on_gpu=False)
    assert [stage for stage in before if after[stage] < before[stage]] == less


def test_the_line_names_the_whole_and_the_longest_and_a_short_run_has_no_warning():
    stages = {"synthesize": 300.0, "calibrate": 1000.0, "distill": 600.0, "inspect": 40.0}
    whole = (1940 + estimate.STAGES * estimate.START) / 60
    assert estimate.lines(stages) == [
        f"the whole run: about {whole:.0f} min here, estimated by a few forwards; "
        "longest: calibrate 17 min, distill 10 min, synthesize 5 min"
    ]


def test_over_two_hours_it_warns_with_the_way_out():
    line, warning = estimate.lines({"synthesize": 7201.0})
    assert line.startswith("the whole run: about 2.0 h here")
    for knob in ("synthesize.sequences", "calibrate.sequences", "distill.steps"):
        assert knob in warning


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_the_pace_is_measured_on_the_teacher(tmp_path: Path, knobs: params.Params, dtype: str):
    synthesize = dataclasses.replace(knobs.synthesize, batch=4, dtype=dtype)
    pace = estimate.measure(tiny.save(tmp_path / "model", tie=False), dataclasses.replace(knobs, synthesize=synthesize))
    assert min(pace.forward, pace.decoding, pace.operations) > 0
    attention, mlp = 32 * 32 + 2 * 16 * 32 + 32 * 32, 2 * 64 * 32
    assert pace.products == 2 * ((attention + mlp) * 32 + 32 * 64 * 64), "without embedding and head"
    assert pace.layers == 2
