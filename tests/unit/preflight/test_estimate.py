"""How long the whole run will take: against stages that were measured, and in what it says."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.knobs import params
from pipeline.knobs.scheme import from_short
from pipeline.preflight import estimate
from pipeline.preflight.estimate import Pace
from tests import tiny

ROOT = Path(__file__).parents[3]
# SmolLM2-135M on two cores with AVX2 alone, in float32, and with AMX: tokens a second, float32 operations a second
AVX2 = Pace(
    forward=430, exact=430, decoding=360, operations=130e9, weights=1.062e8, products=8.663e10, head=1.631e10, layers=30
)
AMX = Pace(
    forward=2013,
    exact=684,
    decoding=1534,
    operations=295e9,
    weights=1.062e8,
    products=8.663e10,
    head=1.631e10,
    layers=30,
)
# seconds of what the bars showed, of the same knobs, and of earlier ones with more of all
TOOK = {
    "AVX2": {
        "synthesize": 197, "calibrate": 672, "analyze": 89, "targets": 96,
        "distill": 358, "inspect": 38, "export": 85, "evaluate": 451,
    },
    "AMX": {
        "synthesize": 75, "calibrate": 290, "analyze": 64, "targets": 26,
        "distill": 131, "inspect": 23, "export": 35, "evaluate": 321,
    },
}  # fmt: skip
MORE = {"synthesize": 336, "analyze": 136, "targets": 179, "distill": 566}
EARLIER = dataclasses.replace(AVX2, forward=392, exact=392, decoding=337)


@pytest.fixture
def knobs(monkeypatch: pytest.MonkeyPatch) -> params.Params:
    """Those with which the stages were measured."""
    monkeypatch.chdir(ROOT)  # some are paths relative to it
    changes = {
        "synthesize": {"sequences": 208, "held_out": 32, "length": 256},
        "calibrate": {"method": "gptq", "sequences": 128, "fisher": True},
        "analyze": {"sequences": 2, "sensitivity_sequences": 1},
        "targets": {"share": 0.0},
        "distill": {"steps": 44, "batch": 4},
        "inspect": {"sensitivity_sequences": 0},
        "export": {"formats": ["compressed-tensors", "gguf"]},
        "prove": {"variants": ["student"], "sequences": 4, "prompts": 16, "tokens": 64},
        "references": {"long": 0, "dialogues": 0},
        "evaluate": {"windows": 8, "window": 1024, "source": "folder", "limit": 0, "instructions": 0},
    }
    return dataclasses.replace(changed(params.load(), changes), scheme=from_short("W4A16"))


def changed(known: params.Params, changes: dict[str, dict]) -> params.Params:
    sections = {name: dataclasses.replace(getattr(known, name), **own) for name, own in changes.items()}
    return dataclasses.replace(known, **sections)


@pytest.mark.parametrize("stage", TOOK["AVX2"])
@pytest.mark.parametrize("machine", TOOK)
def test_stages_take_what_was_measured(machine: str, stage: str, knobs: params.Params):
    pace = {"AVX2": AVX2, "AMX": AMX}[machine]
    assert estimate.seconds(knobs, pace, on_gpu=False)[stage] == pytest.approx(TOOK[machine][stage], rel=0.3)


def test_the_proofs_take_what_was_measured(knobs: params.Params):
    """63 seconds of work for one variant in two formats, on two cores with AVX-512, in float32."""
    pace = dataclasses.replace(AMX, exact=445)
    took = estimate.seconds(knobs, pace, on_gpu=False)["prove"]
    assert took == pytest.approx(63, rel=0.3)
    three = changed(knobs, {"prove": {"variants": ["rtn", "ptq", "student"]}})
    assert estimate.seconds(three, pace, on_gpu=False)["prove"] == pytest.approx(3 * took)


@pytest.mark.parametrize("stage", MORE)
def test_stages_with_larger_budgets_take_what_was_measured(stage: str, knobs: params.Params):
    more = {
        "synthesize": {"sequences": 272, "held_out": 16},
        "analyze": {"sequences": 8, "sensitivity_sequences": 2},
        "distill": {"steps": 60},
    }
    took = estimate.seconds(changed(knobs, more), EARLIER, on_gpu=False)[stage]
    assert took == pytest.approx(MORE[stage], rel=0.2)


def test_the_whole_takes_what_was_measured(knobs: params.Params):
    """38.6 minutes with AVX2, other work beside it for some of them, and 20.4 with AMX."""
    for pace, minutes in ((AVX2, 38.6), (AMX, 20.4)):
        whole = sum(estimate.seconds(knobs, pace, on_gpu=False).values()) + estimate.STAGES * estimate.START
        assert whole / 60 == pytest.approx(minutes, rel=0.15)


def test_a_machine_twice_as_fast_takes_half_the_time(knobs: params.Params, monkeypatch: pytest.MonkeyPatch):
    slow = estimate.seconds(knobs, AVX2, on_gpu=False)
    rates = {name: 2 * getattr(AVX2, name) for name in ("forward", "exact", "decoding", "operations")}
    monkeypatch.setattr(estimate, "STEP", estimate.STEP / 2)
    quick = estimate.seconds(knobs, dataclasses.replace(AVX2, **rates), on_gpu=False)
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
    before = estimate.seconds(knobs, AVX2, on_gpu=False)
    after = estimate.seconds(changed(knobs, changes), AVX2, on_gpu=False)
    assert [stage for stage in before if after[stage] < before[stage]] == less


def test_answers_in_writing_take_a_step_a_token(knobs: params.Params):
    """Of gsm8k the 727 tokens of its shots (by SmolLM2's tokenizer), some 60 of a question, and 256 of an answer."""
    hub = {"source": "hub", "limit": 100}
    of_tasks = [
        estimate.seconds(changed(knobs, {"evaluate": {**hub, "tasks": tasks}}), AMX, on_gpu=False)["evaluate"]
        for tasks in (["piqa"], ["piqa", "gsm8k"])
    ]
    assert of_tasks[1] - of_tasks[0] == pytest.approx(
        4 * 100 * estimate.DECODING * (727 + 60 + 256) / AMX.decoding, rel=0.2
    )


def test_a_head_of_its_own_bits_takes_calibrate_longer(knobs: params.Params):
    before = estimate.seconds(knobs, AVX2, on_gpu=False)
    after = estimate.seconds(dataclasses.replace(knobs, scheme=from_short("W4A16E8H6")), AVX2, on_gpu=False)
    assert [stage for stage in before if after[stage] > before[stage]] == ["calibrate"]


def test_the_line_names_the_whole_and_the_longest_and_a_short_run_has_no_warning():
    stages = {"synthesize": 300.0, "calibrate": 1000.0, "distill": 600.0, "inspect": 40.0}
    whole = (1940 + estimate.STAGES * estimate.START) / 60
    assert estimate.lines(stages) == [
        f"the whole run: about {whole:.0f} min here, estimated by a few forwards; "
        "longest: calibrate 17 min, distill 10 min, synthesize 5 min"
    ]


def test_over_two_hours_it_warns_with_the_way_out():
    line, warning = estimate.lines({"synthesize": 7100.0})
    assert line.startswith("the whole run: about 2.0 h here")
    for knob in ("synthesize.sequences", "calibrate.sequences", "distill.steps"):
        assert knob in warning


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_the_pace_is_measured_on_the_teacher(tmp_path: Path, knobs: params.Params, dtype: str):
    synthesize = dataclasses.replace(knobs.synthesize, batch=4, dtype=dtype)
    pace = estimate.measure(tiny.save(tmp_path / "model", tie=False), dataclasses.replace(knobs, synthesize=synthesize))
    assert min(pace.forward, pace.decoding, pace.operations) > 0
    attention, mlp = 32 * 32 + 2 * 16 * 32 + 32 * 32, 2 * 64 * 32
    assert pace.weights == 2 * (attention + mlp + 32 * 64)
    assert pace.products == 2 * ((attention + mlp) * 32 + 32 * 64 * 64), "without embedding and head"
    assert pace.head == 259 * 32 * 32
    assert pace.layers == 2
