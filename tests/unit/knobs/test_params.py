"""params.yaml as a file: its shape, the names and types of its knobs, and YAML's traps."""

import dataclasses
import typing
from pathlib import Path

import pytest

from pipeline.calibration.methods import PTQ_METHODS
from pipeline.calibration.observers import OBSERVERS
from pipeline.corpus.sampler import SAMPLERS
from pipeline.evaluation.tasks import GROUPS
from pipeline.export.formats import EXPORT_FORMATS
from pipeline.knobs import kinds, params, sections
from pipeline.knobs.scheme import Activations, KVCache, Observer, Weights, from_short
from pipeline.losses.chunked import DIVERGENCES
from pipeline.rounding.methods import SCALES
from tests.unit.knobs.files import ROOT, SHIPPED, lines, load_text, load_with, long, problems

pytestmark = pytest.mark.usefixtures("in_the_root")


def test_the_shipped_knobs_load_with_their_values():
    loaded = params.load()
    assert SHIPPED.keys() == params.Params.__dataclass_fields__.keys()
    assert loaded.seed == SHIPPED["seed"]
    assert loaded.scheme == from_short(SHIPPED["scheme"])
    for section in SHIPPED.keys() - {"seed", "scheme"}:
        assert vars(getattr(loaded, section)) == SHIPPED[section]


def test_the_long_scheme_in_the_comments_of_the_shipped_knobs_loads(tmp_path: Path):
    """Without its `# `, in place of the short one."""
    rows = (ROOT / "params.yaml").read_text().splitlines()
    start = rows.index("# scheme:")
    end = rows.index("", start)
    shown = [row.removeprefix("# ") for row in rows[start:end]]
    rest = [row for row in [*rows[:start], *rows[end:]] if not row.startswith("scheme:")]
    loaded = load_text(tmp_path, "\n".join([*rest, *shown])).scheme
    assert loaded.weights == Weights(4)
    assert loaded.activations == Activations(16)
    assert loaded.kv_cache == KVCache(0)
    assert (loaded.embedding, loaded.head) == (
        from_short(SHIPPED["scheme"]).embedding,
        from_short(SHIPPED["scheme"]).head,
    )
    assert [override.match for override in loaded.overrides] == ["down_proj", "model.layers.0.*"]
    assert loaded.overrides[0].activations == Activations(16, dynamic=True)


@pytest.mark.parametrize(
    ("hint", "table"),
    [
        (kinds.Divergence, [*DIVERGENCES]),
        (kinds.Method, PTQ_METHODS),
        (sections.Calibrate.__annotations__["scales"], SCALES),
        (sections.Synthesize.__annotations__["strategy"], SAMPLERS),
        (kinds.Format, EXPORT_FORMATS),
        (kinds.Group, GROUPS),
        (Observer, OBSERVERS),
    ],
    ids=["divergence", "method", "scales", "strategy", "format", "group", "observer"],
)
def test_the_names_a_knob_admits_are_the_keys_of_the_table_behind_it(hint: object, table: dict):
    assert sorted(typing.get_args(hint)) == sorted(table)


def test_unknown_missing_and_ill_typed_knobs_are_all_named_at_once(tmp_path: Path):
    problem_lines = problems(
        tmp_path,
        seed="zero",
        distill__steps=...,
        distill__stepz=1,
        export=...,
        synthesize__length=2.5,
        extra=1,
        scheme=long(
            {"match": "down", "weights": {"bits": 9}, "activation": 3},
            {"match": "up", "activations": {"dynamic": "yes", "percent": 99}},
            weights__group=...,
            kv_cache__bits="8",
            bits=4,
        ),
    )
    text = "\n".join(problem_lines)
    assert "seed: expected int, got 'zero' (str)" in text
    assert "distill.steps: missing" in text
    assert "unknown knob 'distill.stepz'; did you mean 'distill.steps'?" in text
    assert "export: missing" in text
    assert "synthesize.length: expected int, got 2.5 (float)" in text
    assert "unknown knob 'extra'" in text
    assert "scheme.weights.group: missing" in text
    assert "scheme.kv_cache.bits: expected int, got '8' (str)" in text
    assert "unknown knob 'scheme.bits'" in text
    assert "scheme.overrides[0].weights.bits: unknown value 9; available: 0, 2, 3, 4, 5, 6, 7, 8" in text
    assert "unknown knob 'scheme.overrides[0].activation'; did you mean 'scheme.overrides[0].activations'?" in text
    assert "scheme.overrides[1].activations.dynamic: expected bool, got 'yes' (str)" in text
    assert "unknown knob 'scheme.overrides[1].activations.percent'" in text
    assert len(problem_lines) == 13


@pytest.mark.parametrize(
    ("knob", "value", "meant"),
    [
        ("distill__divergence", "revers", "'reverse'"),
        ("synthesize__strategy", "hybird", "'hybrid'"),
        ("calibrate__method", "gpqt", "'gptq'"),
        ("calibrate__scales", "min-max", "'minmax'"),
        ("export__formats", ["compressed-tensors", "ggf"], "'gguf'"),
        ("evaluate__groups", ["trsut"], "'trust'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_one_that_was_meant(tmp_path: Path, knob: str, value: object, meant: str):
    (problem,) = problems(tmp_path, **{knob: value})
    assert problem.startswith(knob.replace("__", "."))
    assert f"did you mean {meant}? available: " in problem


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("seed", True),
        ("seed", None),
        ("scheme", 4),
        ("scheme", None),
        ("scheme", ["W4"]),
        ("distill__train_norms", 1),
        ("distill__train_norms", "yes"),
        ("distill__lr", "fast"),
        ("distill__lr", "0.1"),
        ("distill__freeze", []),
        ("distill__freeze", [3]),
        ("synthesize__greedy_prefix", 3),
        ("synthesize__greedy_prefix", [3, 5.0]),
        ("evaluate__tasks", "piqa"),
        ("report__title", 3),
        ("teacher", "pypi"),
        ("teacher", None),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, knob: str, value: object):
    (problem,) = problems(tmp_path, **{knob: value})
    assert problem.startswith(knob.replace("__", "."))
    assert "text, write" not in problem


def test_an_integer_may_stand_where_a_float_is_due(tmp_path: Path):
    value = load_with(tmp_path, distill__kl=1).distill.kl
    assert (value, type(value)) == (1.0, float)


def test_knobs_that_stand_twice_are_all_named_with_their_lines(tmp_path: Path):
    """Beside what else is wrong."""
    rows = (ROOT / "params.yaml").read_text().splitlines()
    rows[rows.index("distill:") + 1 : rows.index("distill:") + 1] = ["  steps: 3", "  stepz: 3"]
    rows = [row for row in rows if not row.startswith("scheme:")]
    rows += ["seed: 1", "scheme:", "  weights: {bits: 4, symmetric: true, bits: 8, group: 0}"]
    rows += ["  overrides: [{match: q, weights: {}}, {match: down, match: up, activations: {bits: 4}}]"]
    with pytest.raises(ValueError, match="bad knob") as caught:
        load_text(tmp_path, "\n".join(rows))
    problem_lines = lines(caught.value)
    at = {start: [i + 1 for i, row in enumerate(rows) if row.startswith(start)] for start in ("seed:", "  steps:")}
    assert f"seed: stands twice, in lines {at['seed:'][0]} and {at['seed:'][1]}" in problem_lines
    assert f"distill.steps: stands twice, in lines {at['  steps:'][0]} and {at['  steps:'][1]}" in problem_lines
    assert f"scheme.weights.bits: stands twice, in lines {len(rows) - 1} and {len(rows) - 1}" in problem_lines
    assert f"scheme.overrides[1].match: stands twice, in lines {len(rows)} and {len(rows)}" in problem_lines
    assert "scheme.kv_cache: missing" in problem_lines
    assert any("distill.stepz" in line for line in problem_lines)
    assert sum("stands twice" in line for line in problem_lines) == 4


def test_the_same_knob_in_two_sections_stands_once_in_each(tmp_path: Path):
    text = "a: {x: 1, y: &y {x: 2}}\nb: {x: 1, y: *y}\nc: [{x: 1}, {x: 2}]\n"
    with pytest.raises(ValueError, match="bad knob") as caught:
        load_text(tmp_path, text)
    assert "twice" not in str(caught.value)


def test_a_file_that_is_no_yaml_or_no_mapping_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="is not YAML"):
        load_text(tmp_path, "seed: [0")
    with pytest.raises(ValueError, match="the file: expected a section of knobs, got None"):
        load_text(tmp_path, "")
    with pytest.raises(ValueError, match=r"the file: expected a section of knobs, got \['seed'\]"):
        load_text(tmp_path, "- seed")


def test_keys_that_are_no_text_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown knob '3'"):
        load_text(tmp_path, (ROOT / "params.yaml").read_text() + "\n3: 4\n")
    (problem,) = problems(tmp_path, scheme=long({"match": "q", "weights": {4: 8}, "activations": {}}))
    assert "unknown knob 'scheme.overrides[0].weights.4'" in problem


def test_knobs_cannot_be_changed_once_loaded():
    with pytest.raises(AttributeError):
        params.load().seed = 1  # type: ignore[misc]


def test_a_copy_with_other_knobs_is_checked_too():
    """As a stage makes one where `dtype: auto` is settled."""
    loaded = params.load()
    changed = dataclasses.replace(loaded, calibrate=dataclasses.replace(loaded.calibrate, dtype="float32"))
    assert (changed.scheme, changed.calibrate.dtype) == (loaded.scheme, "float32")
    with pytest.raises(ValueError, match="dtype"):
        dataclasses.replace(loaded.calibrate, dtype="float64")
