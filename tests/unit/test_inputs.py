"""What a stage reads by dvc.yaml: taken when it begins, and held against what is there when it ends."""

import os
from pathlib import Path

import pytest
import yaml

import stages
from pipeline import inputs
from stages import run

FLOW = """
stages:
  distill:
    cmd: python -m stages.distill
    params: [seed, distill, scheme.weights, {versions.yaml: [torch]}]
    deps: [data/text, data/teacher.bin, stages/distill.py, pipeline/losses.py]
  evaluate:
    foreach: {student: data/student}
    do:
      cmd: python -m stages.evaluate
      params: [evaluate]
      deps: ["${item}", "${evaluate.text}", data/teacher.bin]
"""
KNOBS = {
    "seed": 0,
    "scheme": {"weights": {"bits": 4, "group": 0}, "activations": {"bits": 16}},
    "distill": {"lr": 0.1, "freeze": "ov"},
    "distillery": 3,
    "evaluate": {"limit": 3},
}
CODE = {"stages/distill.py": "lr", "pipeline/losses.py": "kl", "pipeline/other.py": "other"}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path, content in {
        "dvc.yaml": FLOW,
        "params.yaml": yaml.safe_dump(KNOBS),
        "data/teacher.bin": "teacher",
        "data/text/deep/a.txt": "a",
        **CODE,
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(content)
    return tmp_path


def set_knobs(**changes: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({**KNOBS, **changes}))


def test_a_stage_reads_what_dvc_yaml_says():
    found = inputs.read("distill", CODE)
    assert found.knobs == {
        "seed": 0,
        "distill.lr": 0.1,
        "distill.freeze": "ov",
        "scheme.weights.bits": 4,
        "scheme.weights.group": 0,
    }
    assert found.code == {"stages/distill.py": "lr", "pipeline/losses.py": "kl"}
    assert sorted(found.data) == ["data/teacher.bin", "data/text/deep/a.txt"]


def test_of_a_foreach_it_is_what_its_stages_have_in_common():
    found = inputs.read("evaluate", CODE)
    assert (found.knobs, found.code, [*found.data]) == ({"evaluate.limit": 3}, {}, ["data/teacher.bin"])


def test_without_dvc_yaml_it_is_all_knobs():
    Path("dvc.yaml").unlink()
    assert inputs.read("distill", CODE) == inputs.Inputs(inputs.flat(KNOBS), {}, {})


@pytest.mark.parametrize("content", ["- 1", "a: [", ""])
def test_files_that_are_no_mapping_are_for_others_to_complain_of(content: str):
    Path("params.yaml").write_text(content)
    Path("dvc.yaml").write_text(content)
    assert inputs.read("distill", CODE) == inputs.Inputs({}, {}, {})


def test_all_that_has_changed_is_named():
    before = inputs.read("distill", CODE)
    set_knobs(distill={"lr": 0.2, "kl": 1}, evaluate={"limit": 9}, distillery=4)
    Path("data/text/b.txt").write_text("b")
    os.utime("data/teacher.bin", (0, 0))
    after = inputs.read("distill", {**CODE, "pipeline/losses.py": "ce", "pipeline/other.py": "more"})
    assert before.changed(before) == []
    assert before.changed(after) == [
        "params.yaml: distill.freeze was ov, and is not there",
        "params.yaml: distill.lr was 0.1, and is 0.2",
        "params.yaml: distill.kl was not there, and is 1",
        "pipeline/losses.py",
        "data/teacher.bin",
        "data/text/b.txt",
    ]


def test_knobs_have_dotted_names():
    assert inputs.flat({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


def during(edit, monkeypatch: pytest.MonkeyPatch) -> str | int | None:
    """How a stage ends during which there was an edit."""
    Path("versions.yaml").write_text("{}")
    monkeypatch.setattr("sys.argv", ["distill"])
    monkeypatch.setattr(run, "BEGAN_WITH", stages.sources())

    def work() -> None:
        run.begin("distill")
        edit()

    try:
        run.main("distill", work)
    except SystemExit as end:
        return end.code
    return 0


def test_a_stage_whose_knobs_or_code_were_edited_while_it_ran_fails(monkeypatch: pytest.MonkeyPatch):
    def edit() -> None:
        set_knobs(distill={"lr": 0.2, "freeze": "ov"})
        Path("pipeline/losses.py").write_text("ce")

    assert during(edit, monkeypatch) == (
        "distill: what it reads has changed while it ran, so what it made is of neither state; run it again:\n"
        "  params.yaml: distill.lr was 0.1, and is 0.2\n"
        "  pipeline/losses.py"
    )
    assert not run.USAGE.exists()


def test_edits_of_what_it_does_not_read_do_no_harm(monkeypatch: pytest.MonkeyPatch):
    def edit() -> None:
        set_knobs(evaluate={"limit": 9}, scheme={**KNOBS["scheme"], "activations": {"bits": 8}})
        Path("pipeline/other.py").write_text("more")
        Path("pipeline/losses.py").write_text("kl")  # the same again

    assert during(edit, monkeypatch) == 0
