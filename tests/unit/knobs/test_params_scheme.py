"""The scheme of params.yaml, short and long, with its overrides: what it may say, and what is said of a bad one."""

from pathlib import Path

import pytest

from pipeline.knobs.scheme import Activations, KVCache, Override, Scheme, Weights
from tests.unit.knobs.files import LONG, load_with, long, problems

pytestmark = pytest.mark.usefixtures("in_the_root")


def test_a_long_scheme_has_what_it_says(tmp_path: Path):
    loaded = load_with(tmp_path, scheme=long()).scheme
    assert loaded == Scheme(Weights(4, True, 64), Activations(16), KVCache(8, False))


def test_keys_of_the_cache_have_a_scale_a_token_unless_it_says_channel(tmp_path: Path):
    assert load_with(tmp_path, scheme=long(kv_cache__keys="token")).scheme == load_with(tmp_path, scheme=long()).scheme
    loaded = load_with(tmp_path, scheme=long(kv_cache__keys="channel", kv_cache__block=64)).scheme
    assert loaded.kv_cache == KVCache(8, False, keys="channel", block=64)
    assert load_with(tmp_path, scheme=long(kv_cache__keys="channel")).scheme.kv_cache.block == 32


@pytest.mark.parametrize("field", [f"{part}__{name}" for part, fields in LONG.items() for name in fields])
def test_each_field_of_a_long_scheme_must_be_there(tmp_path: Path, field: str):
    assert problems(tmp_path, scheme=long(**{field: ...})) == [f"scheme.{field.replace('__', '.')}: missing"]


@pytest.mark.parametrize("part", LONG)
def test_each_part_of_a_long_scheme_must_be_there(tmp_path: Path, part: str):
    """An override is not blamed for what the scheme lacks."""
    scheme = long({"match": "q", "weights": {"bits": 3}, "activations": {"bits": 8}}, **{part: ...})
    assert problems(tmp_path, scheme=scheme) == [f"scheme.{part}: missing"]
    (problem,) = problems(tmp_path, scheme=long(**{part: 4}))
    assert problem == f"scheme.{part}: expected a section of knobs, got 4"


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
    ("activations__percentile", "1e"),
]
OUT_OF_RANGE = [("weights__group", -1), ("activations__percentile", 50.0), ("activations__percentile", 100.5)]
OF_THE_CACHE = [
    ("kv_cache__bits", 16),
    ("kv_cache__bits", 1),
    ("kv_cache__group", -8),
    ("kv_cache__group", 8.0),
    ("kv_cache__keys", "channels"),
    ("kv_cache__keys", 8),
    ("kv_cache__block", 1),
    ("kv_cache__block", 0),
    ("kv_cache__block", 32.0),
]


@pytest.mark.parametrize(("field", "value"), [*WRONG, *OUT_OF_RANGE, *OF_THE_CACHE])
def test_a_wrong_field_of_a_scheme_is_named(tmp_path: Path, field: str, value: object):
    (problem,) = problems(tmp_path, scheme=long(**{field: value}))
    assert problem.startswith(f"scheme.{field.replace('__', '.')}: ")


@pytest.mark.parametrize(("field", "value"), [*WRONG, *OUT_OF_RANGE])
def test_a_wrong_field_of_an_override_is_named(tmp_path: Path, field: str, value: object):
    part, name = field.split("__")
    fine = {"match": "q", part: {}}
    (problem,) = problems(tmp_path, scheme=long(fine, {"match": "k", part: {name: value}}, fine))
    assert problem.startswith(f"scheme.overrides[1].{part}.{name}: ")


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
    (problem,) = problems(tmp_path, scheme=text)
    assert problem.startswith("scheme: ")
    assert named in problem


def test_an_override_has_the_schemes_own_fields_where_it_says_nothing(tmp_path: Path):
    scheme = long(
        {"match": "down", "activations": {"dynamic": True}},
        {"match": "up", "weights": {"bits": 8}},
        {"match": "v", "weights": {"group": 0}, "activations": {"observer": "mse", "bits": 8}},
        {"match": "o", "weights": {}},
    )
    loaded = load_with(tmp_path, scheme=scheme).scheme
    assert loaded.overrides == (
        Override("down", None, Activations(16, dynamic=True)),
        Override("up", Weights(8, True, 64)),
        Override("v", Weights(4, True, 0), Activations(8, observer="mse")),
        Override("o", Weights(4, True, 64)),
    )
    assert load_with(tmp_path, scheme={**long(), "overrides": []}).scheme == load_with(tmp_path, scheme=long()).scheme


@pytest.mark.parametrize(
    "entry",
    [None, "down", 3, [], {}, {"match": "down"}, {"weights": {"bits": 8}}, {"match": 3, "weights": {"bits": 8}}],
)
def test_an_override_that_names_nothing_or_changes_nothing_is_refused(tmp_path: Path, entry: object):
    (problem,) = problems(tmp_path, scheme=long({"match": "q", "weights": {"bits": 8}}, entry))
    assert problem == f"scheme.overrides[1]: expected a match with weights or activations, got {entry!r}"


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
    problem_lines = problems(
        tmp_path,
        scheme=long(
            {"match": "q", "weights": {"group": -2}},
            {"match": "k", "activations": {"percentile": 101}},
            activations__percentile=10,
        ),
    )
    assert sorted(problem_lines) == [
        "scheme.activations.percentile: must be above 50, got 10",
        "scheme.overrides[0].weights.group: must be at least 0, got -2",
        "scheme.overrides[1].activations.percentile: must be at most 100, got 101",
    ]


def test_asymmetric_weights_are_refused_for_a_format_that_holds_none_with_the_way_out(tmp_path: Path):
    scheme = long(
        {"match": "q", "weights": {"bits": 8}},
        {"match": "k", "weights": {"symmetric": True}},
        {"match": "v", "weights": {"bits": 0}},
        {"match": "o", "activations": {"symmetric": False}},
        weights__symmetric=False,
    )
    problem_lines = problems(tmp_path, scheme=scheme)
    assert [line.split(":")[0] for line in problem_lines] == [
        "scheme.weights.symmetric",
        "scheme.overrides[0].weights.symmetric",
    ]
    for line in problem_lines:
        assert (
            "compressed-tensors and gguf of export.formats hold no asymmetric weights; take [onnx, mlx, dequantized]"
            in line
        )
    alone = {"export__formats": ["dequantized"], "evaluate__format": "dequantized"}
    assert not load_with(tmp_path, scheme=scheme, **alone).scheme.weights.symmetric


def test_groups_that_are_no_blocks_are_refused_for_gguf(tmp_path: Path):
    lines = problems(tmp_path, scheme="W4g48E8g16H8g64")
    assert [line.partition(": ")[0] for line in lines] == ["scheme.weights.group", "scheme.embedding.group"]
    for line, group in zip(lines, (48, 16), strict=True):
        assert f"{group} is no multiple of 32, the width of a block of gguf, which is in export.formats" in line
    assert load_with(tmp_path, scheme="W4g48E8g16H8g64", export__formats=["compressed-tensors"]).scheme.weights.group


def test_what_is_scored_is_exported_and_nothing_twice(tmp_path: Path):
    (missing,) = problems(tmp_path, export__formats=["gguf"])
    assert missing == "evaluate.format: compressed-tensors is not in export.formats, ['gguf']; add it there"
    (twice,) = problems(tmp_path, export__formats=["compressed-tensors", "gguf", "gguf"])
    assert twice.startswith("export.formats: each once, got [")
