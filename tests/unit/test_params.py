import copy
import typing
from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.bench.harness import TASKS
from pipeline.distill.freeze import FREEZE_POLICIES
from pipeline.export.formats import EXPORT_FORMATS
from pipeline.quant.methods import PTQ_METHODS
from pipeline.synth import SAMPLERS

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
LENGTH = SHIPPED["synthesize"]["length"]
TRAIN = SHIPPED["synthesize"]["sequences"] - SHIPPED["synthesize"]["held_out"]
MORE = TRAIN + 1


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch):
    """evaluate.benchmarks is a path relative to the checkout."""
    monkeypatch.chdir(ROOT)


def load_with(tmp_path: Path, **changes: object) -> params.Params:
    """Load the shipped knobs with some changed: `section__knob=value`; a value of `...` takes the knob away."""
    tree = copy.deepcopy(SHIPPED)
    for name, value in changes.items():
        *sections, knob = name.split("__")
        place = tree
        for section in sections:
            place = place[section]
        if value is ...:
            del place[knob]
        else:
            place[knob] = value
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(tree))
    return params.load(file)


def problems(tmp_path: Path, **changes: object) -> list[str]:
    with pytest.raises(ValueError, match="bad knob") as caught:
        load_with(tmp_path, **changes)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_the_shipped_knobs_load_with_their_values():
    loaded = params.load()
    assert SHIPPED.keys() == params.Params.__dataclass_fields__.keys()
    assert loaded.seed == SHIPPED["seed"]
    for section in SHIPPED.keys() - {"seed"}:
        assert vars(getattr(loaded, section)) == SHIPPED[section]


@pytest.mark.parametrize(
    ("hint", "table"),
    [
        (params.FreezeName, FREEZE_POLICIES),
        (params.Calibrate.__annotations__["method"], PTQ_METHODS),
        (params.Synthesize.__annotations__["strategy"], SAMPLERS),
        (params.Export.__annotations__["format"], EXPORT_FORMATS),
        (params.Task, TASKS),
    ],
    ids=["freeze", "method", "strategy", "format", "task"],
)
def test_the_names_a_knob_admits_are_the_keys_of_the_table_behind_it(hint: object, table: dict):
    assert sorted(typing.get_args(hint)) == sorted(table)


def test_unknown_missing_and_ill_typed_knobs_are_all_named_at_once(tmp_path: Path):
    found = problems(
        tmp_path, seed="zero", distill__steps=..., distill__stepz=1, export=..., synthesize__length=2.5, extra=1
    )
    assert len(found) == 6
    text = "\n".join(found)
    assert "seed: expected int, got 'zero' (str)" in text
    assert "distill.steps: missing" in text
    assert "unknown knob 'distill.stepz'; did you mean 'distill.steps'?" in text
    assert "export: missing" in text
    assert "synthesize.length: expected int, got 2.5 (float)" in text
    assert "unknown knob 'extra'" in text


@pytest.mark.parametrize(
    ("knob", "value", "meant"),
    [
        ("distill__freeze", "mpl", "'mlp'"),
        ("synthesize__strategy", "hybird", "'hybrid'"),
        ("calibrate__method", "gpqt", "'gptq'"),
        ("export__format", "compressed_tensors", "'compressed-tensors'"),
        ("evaluate__tasks", ["arc_ez"], "'arc_easy'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_one_that_was_meant(tmp_path: Path, knob: str, value: object, meant: str):
    (found,) = problems(tmp_path, **{knob: value})
    assert found.startswith(knob.replace("__", "."))
    assert f"did you mean {meant}? available: " in found


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("seed", True),
        ("seed", None),
        ("scheme", 4),
        ("scheme__weight_bits", 5),
        ("scheme__weight_bits", 4.0),
        ("scheme__activation_bits", False),
        ("distill__train_norms", 1),
        ("distill__train_norms", "yes"),
        ("distill__lr", "1e-4"),
        ("distill__freeze", []),
        ("distill__freeze", [3]),
        ("synthesize__greedy_prefix", 3),
        ("synthesize__greedy_prefix", [3, 5.0]),
        ("evaluate__tasks", "piqa"),
        ("report__title", 3),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, knob: str, value: object):
    (found,) = problems(tmp_path, **{knob: value})
    assert found.startswith(knob.replace("__", "."))


def test_an_integer_may_stand_where_a_float_is_due(tmp_path: Path):
    value = load_with(tmp_path, distill__kl=1).distill.kl
    assert (value, type(value)) == (1.0, float)


def test_patterns_may_stand_where_a_freeze_policy_is_due(tmp_path: Path):
    assert load_with(tmp_path, distill__freeze=["model.layers.0.*"]).distill.freeze == ["model.layers.0.*"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"synthesize__held_out": 0}, "synthesize.held_out: must be at least 1, got 0"),
        ({"synthesize__temperature": 0}, "synthesize.temperature: must be above 0"),
        ({"distill__lr": -1.0}, "distill.lr: must be above 0"),
        ({"distill__warmup": 1.5}, "distill.warmup: must lie in 0 to 1"),
        ({"distill__min_lr": -0.1}, "distill.min_lr: must lie in 0 to 1"),
        ({"distill__kl": 0, "distill__ce": 0}, "distill.ce, distill.kl: both are 0"),
        ({"analyze__kl": 0, "analyze__ce": 0}, "analyze.ce, analyze.kl: both are 0"),
        ({"synthesize__greedy_prefix": [5, 3]}, "synthesize.greedy_prefix"),
        ({"synthesize__greedy_prefix": [3]}, "synthesize.greedy_prefix"),
        ({"synthesize__greedy_prefix": [3, LENGTH]}, "synthesize.greedy_prefix"),
        ({"calibrate__sequences": MORE}, f"calibrate.sequences: asks for {MORE} sequences, but the corpus has {TRAIN}"),
        ({"analyze__sequences": MORE}, f"analyze.sequences: asks for {MORE}"),
        ({"distill__batch": MORE}, f"distill.batch: asks for {MORE}"),
        ({"evaluate__windows": 1}, "evaluate.windows: must be at least 2"),
        ({"evaluate__limit": -1}, "evaluate.limit: must be at least 0"),
        (
            {"teacher__source": "path", "teacher__path": "/nowhere/model"},
            "teacher.path: '/nowhere/model' does not exist",
        ),
        ({"evaluate__benchmarks": "/nowhere"}, "evaluate.benchmarks: '/nowhere' is not a folder"),
        ({"evaluate__text": "wikitext"}, "benchmark file data/benchmarks/wikitext.jsonl does not exist"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(tmp_path: Path, changes: dict, named: str):
    (found,) = problems(tmp_path, **changes)
    assert named in found


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("knob", ["distill.lr", "distill.weight_decay", "distill.ce", "calibrate.damping"])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, knob: str, value: float):
    assert any(knob in found for found in problems(tmp_path, **{knob.replace(".", "__"): value}))


def test_values_out_of_range_are_all_named_at_once(tmp_path: Path):
    assert len(problems(tmp_path, distill__steps=0, distill__lr=0.0, calibrate__block=0, evaluate__batch=0)) == 4


def test_a_file_that_is_no_yaml_or_no_mapping_is_refused(tmp_path: Path):
    file = tmp_path / "params.yaml"
    file.write_text("seed: [0")
    with pytest.raises(ValueError, match="is not YAML"):
        params.load(file)
    file.write_text("")
    with pytest.raises(ValueError, match="the file: expected a section of knobs, got None"):
        params.load(file)


def test_knobs_cannot_be_changed_once_loaded():
    with pytest.raises(AttributeError):
        params.load().seed = 1  # type: ignore[misc]
