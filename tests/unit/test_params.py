import copy
import math
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import params
from pipeline.bench.harness import TASKS
from pipeline.calibration.driver import PTQ_METHODS
from pipeline.distill.losses import DIVERGENCES
from pipeline.export.formats import EXPORT_FORMATS
from pipeline.quant.methods import SCALES
from pipeline.quant.observers import OBSERVERS
from pipeline.scheme import Activations, KVCache, Observer, Override, Scheme, Weights, from_short
from pipeline.synth import SAMPLERS

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
LENGTH = SHIPPED["synthesize"]["length"]
TRAIN = SHIPPED["synthesize"]["sequences"] - SHIPPED["synthesize"]["held_out"]
MORE = TRAIN + 1
LONG = {
    "weights": {"bits": 4, "symmetric": True, "group": 64},
    "activations": {"bits": 16, "symmetric": True, "dynamic": False, "observer": "minmax", "percentile": 99.99},
    "kv_cache": {"bits": 8, "symmetric": False, "group": 0},
}


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch):
    """evaluate.benchmarks is a path relative to the checkout."""
    monkeypatch.chdir(ROOT)


def load_text(tmp_path: Path, text: str) -> params.Params:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    return params.load(file)


def load_with(tmp_path: Path, **changes: object) -> params.Params:
    """Load the shipped knobs with some changed: `section__knob=value`; a value of `...` takes the knob away."""
    tree = copy.deepcopy(SHIPPED)
    for name, value in changes.items():
        put(tree, name.split("__"), value)
    return load_text(tmp_path, yaml.safe_dump(tree))


def put(tree: dict, path: list[str], value: object) -> None:
    for section in path[:-1]:
        tree = tree[section]
    if value is ...:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


def long(*overrides: object, **changes: object) -> dict[str, Any]:
    """A scheme of all fields, some changed: `weights__bits=3`."""
    tree: dict[str, Any] = copy.deepcopy(LONG)
    for name, value in changes.items():
        put(tree, name.split("__"), value)
    return {**tree, "overrides": list(overrides)} if overrides else tree


def lines(error: ValueError) -> list[str]:
    head, *rest = str(error).splitlines()
    assert f"{len(rest)} bad knob(s)" in head
    return [line.strip() for line in rest]


def problems(tmp_path: Path, **changes: object) -> list[str]:
    with pytest.raises(ValueError, match="bad knob") as caught:
        load_with(tmp_path, **changes)
    return lines(caught.value)


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
    assert [override.match for override in loaded.overrides] == ["down_proj", "model.layers.0.*", "lm_head"]
    assert loaded.overrides[0].activations == Activations(16, dynamic=True)


@pytest.mark.parametrize(
    ("hint", "table"),
    [
        (params.Divergence, [*DIVERGENCES]),
        (params.Method, PTQ_METHODS),
        (params.Calibrate.__annotations__["scales"], SCALES),
        (params.Synthesize.__annotations__["strategy"], SAMPLERS),
        (params.Export.__annotations__["format"], EXPORT_FORMATS),
        (params.Task, TASKS),
        (Observer, OBSERVERS),
    ],
    ids=["divergence", "method", "scales", "strategy", "format", "task", "observer"],
)
def test_the_names_a_knob_admits_are_the_keys_of_the_table_behind_it(hint: object, table: dict):
    assert sorted(typing.get_args(hint)) == sorted(table)


def test_unknown_missing_and_ill_typed_knobs_are_all_named_at_once(tmp_path: Path):
    found = problems(
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
    text = "\n".join(found)
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
    assert len(found) == 13


@pytest.mark.parametrize(
    ("knob", "value", "meant"),
    [
        ("distill__divergence", "revers", "'reverse'"),
        ("synthesize__strategy", "hybird", "'hybrid'"),
        ("calibrate__method", "gpqt", "'gptq'"),
        ("calibrate__scales", "min-max", "'minmax'"),
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
    (found,) = problems(tmp_path, **{knob: value})
    assert found.startswith(knob.replace("__", "."))
    assert "text, write" not in found


def test_an_integer_may_stand_where_a_float_is_due(tmp_path: Path):
    value = load_with(tmp_path, distill__kl=1).distill.kl
    assert (value, type(value)) == (1.0, float)


def test_patterns_may_stand_where_a_freeze_policy_is_due(tmp_path: Path):
    assert load_with(tmp_path, distill__freeze=["model.layers.0.*"]).distill.freeze == ["model.layers.0.*"]


@pytest.mark.parametrize("policy", ["auto", "none", "q,k", "ov@0-7,v@8-", "*.down_proj@3", ["q@1", "mlp@2-3"]])
def test_a_freeze_policy_may_be_terms(tmp_path: Path, policy: str | list[str]):
    assert load_with(tmp_path, distill__freeze=policy).distill.freeze == policy


def test_a_freeze_policy_that_cannot_be_read_is_answered_with_all_that_is_wrong(tmp_path: Path):
    (found,) = problems(tmp_path, distill__freeze="vo,q@,k@7-3,auto")
    for part in ("'vo'; did you mean 'ov'?", "'q@' has no layers after its @", "'k@7-3' ends before", "'auto' stands"):
        assert part in found


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"batch": 9}, "distill.batch: 9 sequences do not divide among 1 processes x 2 forwards"),
        ({"batch": 8, "accumulate": 2, "processes": 3}, "among 3 processes x 2 forwards"),
        ({"shard": True}, "distill.shard: there is one process to share with"),
        ({"kl": 0.0, "ce": 0.0}, "distill.ce, distill.kl, distill.hidden: all are 0"),
        ({"accumulate": 0}, "distill.accumulate: must be at least 1"),
        ({"processes": 0}, "distill.processes: must be at least 1"),
        ({"hidden": -0.5}, "distill.hidden: must be at least 0"),
        ({"scale_lr": 0.0}, "distill.scale_lr: must be above 0"),
    ],
)
def test_knobs_of_distillation_that_make_no_sense_together(tmp_path: Path, knobs: dict, message: str):
    (found,) = problems(tmp_path, **{f"distill__{name}": value for name, value in knobs.items()})
    assert message in found


def test_a_text_that_is_asked_for_must_be_there(tmp_path: Path):
    (found,) = problems(tmp_path, targets__text="no/such", targets__share=0.5)
    assert "targets.text: 'no/such' does not exist" in found
    assert load_with(tmp_path, targets__text="no/such").targets.text == "no/such"  # it is not read


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-4", "1.0e-4"), ("1.5e3", "1.5e+3"), ("2E-5", "2.0e-5"), ("-1e-4", "-1.0e-4"), (".5e2", "0.5e+2")],
)
def test_a_number_that_yaml_reads_as_text_is_answered_with_how_to_write_it(tmp_path: Path, written: str, meant: str):
    """YAML 1.1 knows no exponent without a point before and a sign in it."""
    text = (ROOT / "params.yaml").read_text()
    assert text.count("lr: 1.0e-4") == 1
    with pytest.raises(ValueError, match="bad knob") as caught:
        load_text(tmp_path, text.replace("lr: 1.0e-4", f"lr: {written}"))
    assert lines(caught.value) == [
        f"distill.lr: expected float, got '{written}' (str); in YAML this is text, write {meant}"
    ]
    assert yaml.safe_load(meant) == float(written)


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "1 e5", ".e5", "true"])
def test_a_text_that_is_no_number_gets_no_such_answer(tmp_path: Path, text: str):
    (found,) = problems(tmp_path, distill__lr=text)
    assert found == f"distill.lr: expected float, got {text!r} (str)"


def test_knobs_that_stand_twice_are_all_named_with_their_lines(tmp_path: Path):
    """Beside what else is wrong."""
    rows = (ROOT / "params.yaml").read_text().splitlines()
    rows[rows.index("distill:") + 1 : rows.index("distill:") + 1] = ["  steps: 3", "  stepz: 3"]
    rows = [row for row in rows if not row.startswith("scheme:")]
    rows += ["seed: 1", "scheme:", "  weights: {bits: 4, symmetric: true, bits: 8, group: 0}"]
    rows += ["  overrides: [{match: q, weights: {}}, {match: down, match: up, activations: {bits: 4}}]"]
    with pytest.raises(ValueError, match="bad knob") as caught:
        load_text(tmp_path, "\n".join(rows))
    found = lines(caught.value)
    at = {start: [i + 1 for i, row in enumerate(rows) if row.startswith(start)] for start in ("seed:", "  steps:")}
    assert f"seed: stands twice, in lines {at['seed:'][0]} and {at['seed:'][1]}" in found
    assert f"distill.steps: stands twice, in lines {at['  steps:'][0]} and {at['  steps:'][1]}" in found
    assert f"scheme.weights.bits: stands twice, in lines {len(rows) - 1} and {len(rows) - 1}" in found
    assert f"scheme.overrides[1].match: stands twice, in lines {len(rows)} and {len(rows)}" in found
    assert "scheme.kv_cache: missing" in found
    assert any("distill.stepz" in line for line in found)
    assert sum("stands twice" in line for line in found) == 4


def test_the_same_knob_in_two_sections_stands_once_in_each(tmp_path: Path):
    text = "a: {x: 1, y: &y {x: 2}}\nb: {x: 1, y: *y}\nc: [{x: 1}, {x: 2}]\n"
    with pytest.raises(ValueError, match="bad knob") as caught:
        load_text(tmp_path, text)
    assert "twice" not in str(caught.value)


def test_a_long_scheme_has_what_it_says(tmp_path: Path):
    loaded = load_with(tmp_path, scheme=long()).scheme
    assert loaded == Scheme(Weights(4, True, 64), Activations(16), KVCache(8, False))


@pytest.mark.parametrize("field", [f"{part}__{name}" for part, fields in LONG.items() for name in fields])
def test_each_field_of_a_long_scheme_must_be_there(tmp_path: Path, field: str):
    assert problems(tmp_path, scheme=long(**{field: ...})) == [f"scheme.{field.replace('__', '.')}: missing"]


@pytest.mark.parametrize("part", LONG)
def test_each_part_of_a_long_scheme_must_be_there(tmp_path: Path, part: str):
    """An override is not blamed for what the scheme lacks."""
    scheme = long({"match": "q", "weights": {"bits": 3}, "activations": {"bits": 8}}, **{part: ...})
    assert problems(tmp_path, scheme=scheme) == [f"scheme.{part}: missing"]
    (found,) = problems(tmp_path, scheme=long(**{part: 4}))
    assert found == f"scheme.{part}: expected a section of knobs, got 4"


WRONG = [
    ("weights__bits", 9),
    ("weights__bits", 1),
    ("weights__bits", 4.0),
    ("weights__bits", True),
    ("weights__symmetric", 1),
    ("weights__group", "64"),
    ("weights__group", 8.0),
    ("activations__bits", 3),
    ("activations__bits", 2),
    ("activations__bits", False),
    ("activations__dynamic", None),
    ("activations__observer", "max"),
    ("activations__percentile", "1e2"),
]
OUT_OF_RANGE = [("weights__group", -1), ("activations__percentile", 50.0), ("activations__percentile", 100.5)]
OF_THE_CACHE = [("kv_cache__bits", 16), ("kv_cache__bits", 1), ("kv_cache__group", -8), ("kv_cache__group", 8.0)]


@pytest.mark.parametrize(("field", "value"), [*WRONG, *OUT_OF_RANGE, *OF_THE_CACHE])
def test_a_wrong_field_of_a_scheme_is_named(tmp_path: Path, field: str, value: object):
    (found,) = problems(tmp_path, scheme=long(**{field: value}))
    assert found.startswith(f"scheme.{field.replace('__', '.')}: ")


@pytest.mark.parametrize(("field", "value"), [*WRONG, *OUT_OF_RANGE])
def test_a_wrong_field_of_an_override_is_named(tmp_path: Path, field: str, value: object):
    part, name = field.split("__")
    fine = {"match": "q", part: {}}
    (found,) = problems(tmp_path, scheme=long(fine, {"match": "k", part: {name: value}}, fine))
    assert found.startswith(f"scheme.overrides[1].{part}.{name}: ")


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_an_override_is_not_blamed_for_what_it_takes_from_the_scheme(tmp_path: Path, field: str, value: object):
    part, _ = field.split("__")
    assert len(problems(tmp_path, scheme=long({"match": "q", part: {}}, **{field: value}))) == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("W9A8", "W9"),
        ("W4KV9", "KV9"),
        ("W4A8KV1", "KV1"),
        ("W4A17", "A17"),
        ("A8", "'A8' is no scheme"),
        ("W4A8KV", "'W4A8KV' is no scheme"),
        ("", "'' is no scheme"),
    ],
)
def test_a_short_scheme_that_makes_no_sense_is_named(tmp_path: Path, text: str, named: str):
    (found,) = problems(tmp_path, scheme=text)
    assert found.startswith("scheme: ")
    assert named in found


def test_an_override_has_the_schemes_own_fields_where_it_says_nothing(tmp_path: Path):
    scheme = long(
        {"match": "down", "activations": {"dynamic": True}},
        {"match": "lm_head", "weights": {"bits": 8}},
        {"match": "v", "weights": {"group": 0}, "activations": {"observer": "mse", "bits": 8}},
        {"match": "o", "weights": {}},
    )
    loaded = load_with(tmp_path, scheme=scheme).scheme
    assert loaded.overrides == (
        Override("down", None, Activations(16, dynamic=True)),
        Override("lm_head", Weights(8, True, 64)),
        Override("v", Weights(4, True, 0), Activations(8, observer="mse")),
        Override("o", Weights(4, True, 64)),
    )
    assert load_with(tmp_path, scheme={**long(), "overrides": []}).scheme == load_with(tmp_path, scheme=long()).scheme


@pytest.mark.parametrize(
    "entry",
    [None, "down", 3, [], {}, {"match": "down"}, {"weights": {"bits": 8}}, {"match": 3, "weights": {"bits": 8}}],
)
def test_an_override_that_names_nothing_or_changes_nothing_is_refused(tmp_path: Path, entry: object):
    (found,) = problems(tmp_path, scheme=long({"match": "q", "weights": {"bits": 8}}, entry))
    assert found == f"scheme.overrides[1]: expected a match with weights or activations, got {entry!r}"


@pytest.mark.parametrize("value", [None, "down", {"match": "q"}])
def test_overrides_that_are_no_list_are_refused(tmp_path: Path, value: object):
    assert problems(tmp_path, scheme={**long(), "overrides": value}) == [
        f"scheme.overrides: expected a list, got {value!r}"
    ]


@pytest.mark.parametrize(
    "entry", [{"match": "q", "weights": 8}, {"match": "q", "weights": None}, {"match": "q", "activations": ["mse"]}]
)
def test_an_overrides_part_must_be_a_section(tmp_path: Path, entry: dict):
    (part,) = entry.keys() - {"match"}
    assert problems(tmp_path, scheme=long(entry)) == [
        f"scheme.overrides[0].{part}: expected a section of knobs, got {entry[part]!r}"
    ]


def test_ranges_of_overrides_are_checked_too(tmp_path: Path):
    found = problems(
        tmp_path,
        scheme=long(
            {"match": "q", "weights": {"group": -2}},
            {"match": "k", "activations": {"percentile": 101}},
            activations__percentile=10,
        ),
    )
    assert found == [
        "scheme.overrides[0].weights.group: must be at least 0, got -2",
        "scheme.activations.percentile: must lie above 50 and not above 100, got 10.0",
        "scheme.overrides[1].activations.percentile: must lie above 50 and not above 100, got 101.0",
    ]


def test_asymmetric_weights_are_refused_for_a_format_that_holds_none_with_the_way_out(tmp_path: Path):
    scheme = long(
        {"match": "q", "weights": {"bits": 8}},
        {"match": "k", "weights": {"symmetric": True}},
        {"match": "v", "weights": {"bits": 0}},
        {"match": "o", "activations": {"symmetric": False}},
        weights__symmetric=False,
    )
    found = problems(tmp_path, scheme=scheme)
    assert [line.split(":")[0] for line in found] == [
        "scheme.weights.symmetric",
        "scheme.overrides[0].weights.symmetric",
    ]
    for line in found:
        assert "export.format 'compressed-tensors' holds no asymmetric weights; take 'dequantized'" in line
    assert not load_with(tmp_path, scheme=scheme, export__format="dequantized").scheme.weights.symmetric


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"synthesize__held_out": 0}, "synthesize.held_out: must be at least 1, got 0"),
        ({"synthesize__temperature": 0}, "synthesize.temperature: must be above 0"),
        ({"distill__lr": -1.0}, "distill.lr: must be above 0"),
        ({"distill__warmup": 1.5}, "distill.warmup: must lie in 0 to 1"),
        ({"distill__min_lr": -0.1}, "distill.min_lr: must lie in 0 to 1"),
        ({"calibrate__migration": -0.1}, "calibrate.migration: must lie in 0 to 1, got -0.1"),
        ({"calibrate__migration": 1.1}, "calibrate.migration: must lie in 0 to 1, got 1.1"),
        ({"calibrate__damping": 0}, "calibrate.damping: must lie above 0 and not above 1, got 0.0"),
        ({"calibrate__damping": -0.01}, "calibrate.damping: must lie above 0"),
        ({"calibrate__damping": 1.01}, "calibrate.damping: must lie above 0 and not above 1, got 1.01"),
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
        ({"analyze__average_bits": 2.9, "analyze__plan_bits": [4, 3]}, "analyze.average_bits: must be at least 3"),
        ({"analyze__plan_bits": [4, 9]}, "analyze.plan_bits[1]: unknown value 9"),
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


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("knob", ["distill.lr", "distill.weight_decay", "distill.ce", "calibrate.damping"])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, knob: str, value: float):
    (found,) = problems(tmp_path, **{knob.replace(".", "__"): value})
    assert found == f"{knob}: expected a finite number, got {value}"


def test_values_out_of_range_are_all_named_at_once(tmp_path: Path):
    assert len(problems(tmp_path, distill__steps=0, distill__lr=0.0, calibrate__block=0, evaluate__batch=0)) == 4


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
    (found,) = problems(tmp_path, scheme=long({"match": "q", "weights": {4: 8}, "activations": {}}))
    assert "unknown knob 'scheme.overrides[0].weights.4'" in found


def test_knobs_cannot_be_changed_once_loaded():
    with pytest.raises(AttributeError):
        params.load().seed = 1  # type: ignore[misc]
