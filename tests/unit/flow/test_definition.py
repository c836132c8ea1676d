"""A sweep's file, against the project's own params.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.flow import definition
from tests.unit.knobs.files import SHIPPED

ROOT = Path(__file__).parents[3]
SOUND: dict[str, Any] = {
    "name": "tiny",
    "grid": {"distill.freeze": ["none", "ov"], "distill.lr": [1.0e-4, 2.0e-4]},
    "seeds": [0, 1],
    "baseline": {"distill.freeze": "none"},
    "metrics": ["perplexity", "kl"],
}


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # some knobs are paths relative to it


def load(folder: Path, **changes: Any) -> definition.Sweep:
    """The sound definition with some entries changed; None takes one out."""
    tree = {key: value for key, value in {**SOUND, **changes}.items() if value is not None}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return definition.load(folder / "tiny.yaml")


def refusal(folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(ValueError, match=r"tiny\.yaml has") as caught:
        load(folder, **changes)
    head, *lines = str(caught.value).splitlines()
    assert f"has {len(lines)} problem" in head
    return [line.strip() for line in lines]


def test_a_grid_is_every_combination_with_every_seed(tmp_path: Path):
    sweep = load(tmp_path, set={"distill.steps": 7})
    assert sweep.knobs == ["distill.freeze", "distill.lr"]
    assert [(p.setting["distill.freeze"], p.setting["distill.lr"], p.seed) for p in sweep.points] == [
        (freeze, rate, seed) for freeze in ("none", "ov") for rate in (1e-4, 2e-4) for seed in (0, 1)
    ]
    assert sweep.points[-1].overrides == {
        "distill.steps": 7,
        "distill.freeze": "ov",
        "distill.lr": 2e-4,
        "distill.seed": 1,
    }
    assert sweep.points[0].label() == "freeze=none lr=0.0001"
    assert sweep.folder == tmp_path / "tiny"


def test_what_is_left_out_has_defaults(tmp_path: Path):
    sweep = load(tmp_path, name=None, baseline=None)
    assert (sweep.name, sweep.baseline, sweep.seed_knob) == ("tiny", {}, "distill.seed")
    assert (sweep.target, sweep.scores) == ("evaluate@student", "data/scores/student.json")
    assert (sweep.curves, sweep.columns) == ("data/student/log.csv", ["kl", "gradient_norm"])


def test_points_join_the_grid_and_have_params_values_where_they_name_none(tmp_path: Path):
    more = {"distill.freeze": ["model.layers.0.*"], "calibrate.method": "rtn"}
    sweep = load(tmp_path, grid={"distill.freeze": ["none"]}, points=[more], seeds=[3])
    assert [p.setting for p in sweep.points] == [
        {"distill.freeze": "none", "calibrate.method": "gptq"},
        {"distill.freeze": ["model.layers.0.*"], "calibrate.method": "rtn"},
    ]
    assert sweep.points[0].overrides == {"distill.freeze": "none", "distill.seed": 3}
    assert [p.label() for p in sweep.points] == ["freeze=none method=gptq", 'freeze=["model.layers.0.*"] method=rtn']


def test_a_setting_follows_what_all_points_share(tmp_path: Path):
    sweep = load(tmp_path, grid=None, points=[{"distill.freeze": "none"}, {"distill.lr": 3e-4}], set={"seed": 5})
    assert [p.setting for p in sweep.points[::2]] == [
        {"distill.freeze": "none", "distill.lr": SHIPPED["distill"]["lr"]},
        {"distill.freeze": "ov", "distill.lr": 3e-4},
    ]
    assert sweep.points[0].overrides["seed"] == 5


def test_ill_typed_unknown_and_missing_entries_are_named_at_once(tmp_path: Path):
    lines = refusal(
        tmp_path,
        name="Tiny sweep",
        grid={"distill.freeze": "none", "distill.lr": [0.0], "distill.stepz": [1]},
        points=["none"],
        seeds=[0, True],
        metrics=None,
        target=3,
        basline={"distill.freeze": "none"},
        set=[1],
    )
    expected = [
        "name: expected small letters",
        "grid: distill.freeze: expected a list of values",
        "unknown knob 'distill.stepz'; did you mean 'distill.steps'?",
        "distill.lr: must be above 0, got 0.0",
        "points[0]: expected a mapping",
        "seeds: expected a list of whole numbers",
        "metrics: expected a list of text, none of them twice, but it is missing",
        "target: expected text, got 3",
        "'basline'; did you mean 'baseline'?",
        "set: expected a mapping",
    ]
    assert [part for part in expected if not any(part in line for line in lines)] == []
    assert len(lines) == len(expected)


@pytest.mark.parametrize("seeds", [[], [0, 0], ["0"], 3, [1.5]])
def test_seeds_are_different_whole_numbers(tmp_path: Path, seeds: Any):
    (line,) = refusal(tmp_path, seeds=seeds)
    assert line.startswith("seeds: expected a list of whole numbers, none of them twice, got")


def test_knobs_that_params_lacks_are_all_named_with_what_was_meant(tmp_path: Path):
    lines = refusal(
        tmp_path,
        grid={"distill.freez": ["none"], "scheme.weights.bits": [4]},
        set={"tacher.source": "hub"},
        seed_knob="distill.sead",
        baseline=None,
    )
    assert len(lines) == 4
    for name, meant in (
        ("distill.freez", "distill.freeze"),
        ("tacher.source", "teacher"),
        ("distill.sead", "distill.s"),
    ):
        assert any(f"unknown knob '{name}'; did you mean '{meant}" in line for line in lines), name
    assert any("unknown knob 'scheme.weights.bits'" in line for line in lines), "the scheme is written short"


def test_values_that_a_knob_cannot_have_are_all_named_each_once(tmp_path: Path):
    lines = refusal(tmp_path, grid={"distill.freeze": ["none", "vo"], "distill.lr": ["fast", -1.0]})
    assert any(
        "distill.freeze: unknown freeze policy 'vo'; did you mean 'ov'?" in line and "and 3 more" in line
        for line in lines
    )
    assert any("distill.lr: unknown value 'fast'" in line for line in lines)
    assert any("distill.lr: must be above 0, got -1.0" in line and "freeze=none lr=-1 seed=0" in line for line in lines)
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"distill.freeze": "qk"}, "qk matches no point; there are: freeze=none lr=0.0001, freeze=none"),
        ({"distill.scale": "static"}, "unknown swept knob 'distill.scale'"),
        ({"distill.freeze": "none", "distill.lr": 1}, "freeze=none lr=1 matches no point"),
    ],
)
def test_a_baseline_is_one_of_the_points(tmp_path: Path, baseline: dict[str, Any], message: str):
    (line,) = refusal(tmp_path, baseline=baseline)
    assert message in line


def test_the_same_setting_twice_is_refused(tmp_path: Path):
    (line,) = refusal(tmp_path, points=[{"distill.freeze": "ov", "distill.lr": 1.0e-4}])
    assert line == "grid, points: the setting freeze=ov lr=0.0001 stands there twice"


def test_a_knob_that_all_points_share_is_not_swept_besides(tmp_path: Path):
    lines = refusal(tmp_path, set={"distill.lr": 1.0e-4, "distill.seed": 3})
    assert [line.split(":")[0] for line in lines] == ["distill.seed", "distill.lr"]


def test_a_sweep_of_nothing_is_refused(tmp_path: Path):
    assert refusal(tmp_path, grid=None, baseline=None) == ["grid, points: one of them must say what to sweep"]


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "is not YAML"), ("- a", "expected a mapping"), ("", "expected")]
)
def test_what_is_no_definition_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "s.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        definition.load(tmp_path / "s.yaml")
    with pytest.raises(ValueError, match="No such file"):
        definition.load(tmp_path / "none.yaml")


def test_the_projects_own_sweeps_load():
    files = sorted((ROOT / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        assert definition.load(file).name == file.stem
    ablation = definition.load(ROOT / "sweeps/ablation.yaml")
    policies = [*dict.fromkeys(point.setting["distill.freeze"] for point in ablation.points)]
    assert policies == ["none", "o", "v", "ov", "qk", "qkv", "qkvo", "mlp", "auto"]


def test_a_sweep_that_trains_nothing_needs_no_curves(tmp_path: Path):
    text = yaml.safe_dump(SOUND) + "curves: null\n"
    (tmp_path / "tiny.yaml").write_text(text)
    sweep = definition.load(tmp_path / "tiny.yaml")
    assert (sweep.curves, sweep.columns) == ("", [])
    (tmp_path / "tiny.yaml").write_text(text.replace("perplexity", "end.kl") + "columns: [kl]\n")
    with pytest.raises(ValueError, match=r"has 2 problem\(s\)") as caught:
        definition.load(tmp_path / "tiny.yaml")
    assert "columns: without curves there is none" in str(caught.value)
    assert "metrics: without curves there is no end.kl" in str(caught.value)


def test_answers_are_kept_of_points_and_of_what_they_are_compared_with(tmp_path: Path):
    sweep = load(tmp_path, items="data/items/ptq", reference="data/items/teacher")
    assert (sweep.items, sweep.reference) == ("data/items/ptq", "data/items/teacher")
    assert (load(tmp_path).items, load(tmp_path).reference) == ("", "")
    for named, absent in (("items", "reference"), ("reference", "items")):
        (line,) = refusal(tmp_path, **{named: "data/items/ptq"})
        assert line == f"{named}: needs {absent} beside it, as answers are compared in pairs"
    assert refusal(tmp_path, items=3, reference="x")[0] == "items: expected text, got 3"


def test_the_laboratories_vary_bits_over_one_evaluation_of_the_teacher():
    for name in ("laboratory", "laboratory-quick"):
        sweep = definition.load(ROOT / f"sweeps/{name}.yaml")
        assert sweep.target == "evaluate@teacher evaluate@ptq"
        assert (sweep.items, sweep.reference) == ("data/items/ptq", "data/items/teacher")
        assert {*sweep.knobs} <= {"scheme", "calibrate.method", "calibrate.rotation"}
