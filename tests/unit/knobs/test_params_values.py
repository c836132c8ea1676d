"""Knobs of the right type whose values make no sense, alone or beside others, and those that just do."""

import math
from pathlib import Path

import pytest

from tests.unit.knobs.files import SHIPPED, load_with, long, problems

pytestmark = pytest.mark.usefixtures("in_the_root")
LENGTH = SHIPPED["synthesize"]["length"]
TRAIN = SHIPPED["synthesize"]["sequences"] - SHIPPED["synthesize"]["held_out"]
MORE = TRAIN + 1


def test_patterns_may_stand_where_a_freeze_policy_is_due(tmp_path: Path):
    assert load_with(tmp_path, distill__freeze=["model.layers.0.*"]).distill.freeze == ["model.layers.0.*"]


@pytest.mark.parametrize("policy", ["auto", "none", "q,k", "ov@0-7,v@8-", "*.down_proj@3", ["q@1", "mlp@2-3"]])
def test_a_freeze_policy_may_be_terms(tmp_path: Path, policy: str | list[str]):
    assert load_with(tmp_path, distill__freeze=policy).distill.freeze == policy


def test_a_freeze_policy_that_cannot_be_read_is_answered_with_all_that_is_wrong(tmp_path: Path):
    (problem,) = problems(tmp_path, distill__freeze="vo,q@,k@7-3,auto")
    for part in ("'vo'; did you mean 'ov'?", "'q@' has no layers after its @", "'k@7-3' ends before", "'auto' stands"):
        assert part in problem


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"batch": 9, "accumulate": 2}, "distill.batch: 9 sequences do not divide among 1 processes x 2 forwards"),
        ({"batch": 8, "accumulate": 2, "processes": 3}, "among 3 processes x 2 forwards"),
        ({"shard": True}, "distill.shard: there is one process to share with"),
        ({"kl": 0.0, "ce": 0.0}, "distill.ce, distill.kl, distill.hidden: all are 0"),
        ({"accumulate": 0}, "distill.accumulate: must be at least 1"),
        ({"processes": 0}, "distill.processes: must be at least 1"),
        ({"hidden": -0.5}, "distill.hidden: must be at least 0"),
        ({"scale_lr": 0.0}, "distill.scale_lr: must be above 0"),
        (
            {"train_embeddings": True},
            "distill.train_embeddings: embedding and head keep the codes that scheme.embedding",
        ),
    ],
)
def test_knobs_of_distillation_that_make_no_sense_together(tmp_path: Path, knobs: dict, message: str):
    (problem,) = problems(tmp_path, **{f"distill__{name}": value for name, value in knobs.items()})
    assert message in problem


def test_a_text_that_is_asked_for_must_be_there(tmp_path: Path):
    (problem,) = problems(tmp_path, targets__text="no/such", targets__share=0.5)
    assert "targets.text: 'no/such' does not exist" in problem
    assert load_with(tmp_path, targets__text="no/such").targets.text == "no/such"  # it is not read


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"synthesize__held_out": 0}, "synthesize.held_out: must be at least 1, got 0"),
        ({"synthesize__temperature": 0}, "synthesize.temperature: must be above 0"),
        (
            {"synthesize__temperature": 0.8},
            "synthesize.temperature: text at 0.8 is no sample of the teacher, which calibrate.fisher needs; "
            "set calibrate.fisher to false, or it to 1",
        ),
        (
            {"synthesize__strategy": "greedy", "synthesize__chat": 0.0},
            "synthesize.strategy: greedy text is no sample of the teacher, which calibrate.fisher needs; "
            "set calibrate.fisher to false, or it to hybrid or sampled",
        ),
        ({"distill__lr": -1.0}, "distill.lr: must be above 0"),
        ({"distill__warmup": 1.5}, "distill.warmup: must be at most 1, got 1.5"),
        ({"distill__min_lr": -0.1}, "distill.min_lr: must be at least 0, got -0.1"),
        ({"calibrate__migration": -0.1}, "calibrate.migration: must be at least 0, got -0.1"),
        ({"calibrate__migration": 1.1}, "calibrate.migration: must be at most 1, got 1.1"),
        ({"calibrate__damping": 0}, "calibrate.damping: must be above 0, got 0"),
        ({"calibrate__damping": -0.01}, "calibrate.damping: must be above 0"),
        ({"calibrate__damping": 1.01}, "calibrate.damping: must be at most 1, got 1.01"),
        ({"calibrate__block": 0}, "calibrate.block: must be at least 1"),
        ({"distill__kl": 0, "distill__ce": 0}, "distill.ce, distill.kl, distill.hidden: all are 0"),
        ({"analyze__kl": 0, "analyze__ce": 0}, "analyze.ce, analyze.kl: both are 0"),
        ({"synthesize__greedy_prefix": [5, 3]}, "synthesize.greedy_prefix"),
        ({"synthesize__greedy_prefix": [3]}, "synthesize.greedy_prefix"),
        ({"synthesize__greedy_prefix": [3, LENGTH]}, "synthesize.greedy_prefix"),
        ({"calibrate__sequences": MORE}, f"calibrate.sequences: asks for {MORE} sequences, but the corpus has {TRAIN}"),
        ({"analyze__sequences": MORE}, f"analyze.sequences: asks for {MORE}"),
        ({"distill__batch": TRAIN + 2}, f"distill.batch: asks for {TRAIN + 2}"),
        ({"analyze__sensitivity_sequences": -1}, "analyze.sensitivity_sequences: must be at least 0, got -1"),
        ({"analyze__sensitivity_sequences": TRAIN}, f"analyze.sensitivity_sequences: {TRAIN} are more than"),
        ({"inspect__sensitivity_sequences": TRAIN}, f"inspect.sensitivity_sequences: {TRAIN} are more than"),
        (
            {"export__qnn_chunk": 64, "export__qnn_context": 64},
            "export.qnn_chunk: a chunk of 64 leaves no place before",
        ),
        ({"analyze__average_bits": 2.9, "analyze__plan_bits": [4, 3]}, "analyze.average_bits: must be at least 3"),
        ({"analyze__plan_bits": [4, 9]}, "analyze.plan_bits[1]: unknown value 9"),
        ({"evaluate__windows": 1}, "evaluate.windows: must be at least 2"),
        ({"evaluate__limit": -1}, "evaluate.limit: must be at least 0"),
        ({"report__margin": 0}, "report.margin: must be above 0, got 0"),
        ({"report__margin": 1}, "report.margin: must be below 1, got 1"),
        ({"evaluate__limit": 1}, "evaluate.limit: 1 item has no standard error"),
        ({"evaluate__items": 1}, "evaluate.items: 1 item has no standard error"),
        ({"evaluate__groups": ["long", "long"]}, "evaluate.groups: each once"),
        (
            {"teacher__source": "path", "teacher__path": "/nowhere/model"},
            "teacher.path: '/nowhere/model' does not exist",
        ),
        ({"evaluate__benchmarks": "/nowhere"}, "evaluate.benchmarks: '/nowhere' is not a folder"),
        ({"evaluate__text": "wikitext"}, "benchmark file data/benchmarks/wikitext.jsonl does not exist"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(tmp_path: Path, changes: dict, named: str):
    (problem,) = problems(tmp_path, **changes)
    assert named in problem


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("calibrate__damping", 1),
        ("calibrate__damping", 1e-9),
        ("calibrate__migration", 0),
        ("calibrate__migration", 1),
        ("distill__warmup", 0),
        ("evaluate__limit", 0),
        ("scheme", long(activations__percentile=100)),
        ("scheme", long(activations__percentile=50.1)),
    ],
)
def test_the_ends_of_a_range_belong_to_it(tmp_path: Path, knob: str, value: object):
    load_with(tmp_path, **{knob: value})


def test_without_fisher_the_text_need_be_no_sample(tmp_path: Path):
    load_with(tmp_path, synthesize__temperature=0.8, calibrate__fisher=False)
    load_with(tmp_path, synthesize__strategy="greedy", synthesize__chat=0.0, calibrate__fisher=False)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("knob", ["distill.lr", "distill.weight_decay", "distill.ce", "calibrate.damping"])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, knob: str, value: float):
    (problem,) = problems(tmp_path, **{knob.replace(".", "__"): value})
    assert problem == f"{knob}: expected a finite number, got {value}"


def test_values_out_of_range_are_all_named_at_once(tmp_path: Path):
    assert len(problems(tmp_path, distill__steps=0, distill__lr=0.0, calibrate__block=0, evaluate__batch=0)) == 4
