"""What a point depends on: in its name, and no more than that."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.flow import plan
from pipeline.flow.definition import Sweep
from pipeline.flow.points import Point
from tests.unit.flow.conftest import git

OVERRIDES = [{"distill.freeze": freeze, "distill.seed": seed} for freeze in ("none", "ov") for seed in (0, 1)]


def sweep(overrides: list[dict[str, Any]], **changes: str) -> Sweep:
    points = tuple(
        Point({k: v for k, v in own.items() if k != "distill.seed"}, own.get("distill.seed", 0), own)
        for own in overrides
    )
    made = Sweep(
        Path("s.yaml"), "s", points, "distill.seed", {}, "evaluate@student", ["kl"], "scores/student.json",
        "student/log.csv", ["kl"],
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def names(project: Path, overrides: list[dict[str, Any]] = OVERRIDES) -> list[str]:
    return [run.name for run in plan.runs(sweep(overrides), project)]


def test_names_are_readable_different_and_always_the_same(project: Path):
    experiment_names = names(project)
    assert [name.rpartition("-")[0] for name in experiment_names] == [
        f"s-freeze={freeze}-seed={seed}" for freeze in ("none", "ov") for seed in (0, 1)
    ]
    assert len({name.rpartition("-")[2] for name in experiment_names}) == 4
    assert names(project) == experiment_names
    assert git(project, "status", "--porcelain") == "", "params.yaml is as it was"


@pytest.mark.parametrize("file", ["make.py", "train.py", "texts/b", "dvc.yaml"])
def test_a_change_of_what_the_result_depends_on_changes_every_name(project: Path, file: str):
    before = names(project)
    changed = (project / file).read_text().replace("cp corpus", "cp  corpus")
    (project / file).write_text(changed + "# more\n")
    assert not {*before} & {*names(project)}


@pytest.mark.parametrize("file", ["README", "dvc.yaml"])
def test_a_change_of_anything_else_changes_none(project: Path, file: str):
    before = names(project)
    changed = (project / file).read_text().replace("cp README page", "cp README page; true")
    (project / file).write_text(changed + "# more\n")
    assert names(project) == before


def test_a_changed_knob_changes_the_names_of_those_that_do_not_set_it(project: Path):
    before = names(project)
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("freeze: ov", "freeze: qk"))
    assert names(project) == before
    params.write_text(params.read_text().replace("seed: 0\ndistill", "seed: 1\ndistill"))
    assert not {*before} & {*names(project)}


def test_stages_that_points_need_alike_are_shared(project: Path):
    runs = plan.runs(sweep(OVERRIDES), project)
    (group,) = plan.shared(runs)
    assert (group.stages, group.runs) == (["corpus"], runs)
    assert plan.shared(runs[:1]) == [], "what only one needs, it makes itself"


def test_each_state_of_the_shared_stages_has_a_group(project: Path):
    """Two seeds of everything: two corpora, and no other stage that two points share."""
    overrides = [{**own, "seed": seed} for seed in (0, 1) for own in OVERRIDES]
    runs = plan.runs(sweep(overrides), project)
    groups = plan.shared(runs)
    assert [group.stages for group in groups] == [["corpus"], ["corpus"]]
    assert [group.runs for group in groups] == [runs[:4], runs[4:]]
    assert [group.overrides["seed"] for group in groups] == [0, 1]
    assert len({group.name for group in groups}) == 2


def test_points_that_differ_in_nothing_that_matters_are_refused(project: Path):
    params = project / "params.yaml"
    params.write_text(params.read_text() + "other: 1\n")
    with pytest.raises(
        ValueError, match=r"evaluate@student does not depend on what tells these apart: s-other=1.*s-other=2"
    ):
        names(project, [{"other": 1}, {"other": 2}])


def test_what_the_commit_lacks_and_what_is_no_output_are_named_at_once(project: Path):
    (project / "train.py").unlink()
    shutil.rmtree(project / "texts")
    with pytest.raises(ValueError, match="4 problem") as caught:
        plan.runs(sweep(OVERRIDES, scores="scores/ptq.json", curves="log.csv"), project)
    for part in (
        "dep train.py is not in HEAD",
        "dep texts is not in HEAD",
        "scores: scores/ptq.json",
        "curves: log.csv",
    ):
        assert part in str(caught.value)


def test_an_unknown_target_is_answered_in_dvcs_words(project: Path):
    with pytest.raises(ValueError, match=r"target: .*evaluate@ptq"):
        plan.runs(sweep(OVERRIDES, target="evaluate@ptq"), project)


def test_the_sources_are_what_lies_in_the_tree(project: Path):
    assert plan.sources(project, "evaluate@student") == ["dvc.yaml", "make.py", "params.yaml", "texts", "train.py"]


def test_a_target_may_be_several_stages(project: Path):
    both = plan.sources(project, "report evaluate@student")
    assert both == ["README", "dvc.yaml", "make.py", "params.yaml", "texts", "train.py"]
    (run,) = plan.runs(sweep(OVERRIDES[:1], target="evaluate@student report"), project)
    assert {*run.keys} == {"corpus", "distill", "evaluate@student", "report"}
    shared_names = {*plan.runs(sweep(OVERRIDES[:1], target="corpus evaluate@student"), project)[0].keys}
    assert shared_names == {"corpus", "distill", "evaluate@student"}, "each once"


def test_what_all_points_are_compared_with_must_be_the_same_for_all(project: Path):
    kept = {"items": "student", "reference": "corpus"}
    assert len(plan.runs(sweep(OVERRIDES, **kept), project)) == 4
    overrides = [{**own, "seed": seed} for seed in (0, 1) for own in OVERRIDES[:1]]
    with pytest.raises(ValueError, match="reference: corpus depends on what the points vary; vary nothing that corpus"):
        plan.runs(sweep(overrides, **kept), project)
    with pytest.raises(ValueError, match="2 problem") as caught:
        plan.runs(sweep(OVERRIDES, items="data/items/ptq", reference="data/items/teacher"), project)
    assert "items: data/items/ptq is no output of" in str(caught.value)
    assert "reference: data/items/teacher is no output of" in str(caught.value)
