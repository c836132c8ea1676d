"""What a stage reads by dvc.yaml: taken when it begins, and held against what is there when it ends."""

import os
from pathlib import Path

import pytest
import yaml

import stages
from pipeline.artifacts import contract, inputs, progress
from stages import run

FLOW = """
stages:
  distill:
    cmd: python -m stages.distill
    params: [seed, distill, scheme.weights, {versions.yaml: [torch]}]
    deps: [data/text, data/teacher.bin, stages/distill.py, pipeline/losses.py]
  targets:
    cmd: python -m stages.targets
    deps: ["${targets.text}", "${targets.lists[1]}"]
  evaluate:
    foreach: {student: data/student, rtn: data/rtn}
    do:
      cmd: python -m stages.evaluate
      params: [evaluate]
      deps: ["${item}", "${evaluate.text}/more", "data/${key}.csv", data/teacher.bin]
  export:
    matrix: {model: [student, rtn], format: [{folder: packed}]}
    cmd: python -m stages.export
    deps: ["data/${item.model}", "data/${item.format.folder}"]
"""
KNOBS = {
    "seed": 0,
    "scheme": {"weights": {"bits": 4, "group": 0}, "activations": {"bits": 16}},
    "distill": {"lr": 0.1, "freeze": "ov"},
    "distillery": 3,
    "evaluate": {"limit": 3, "text": "data/text"},
    "targets": {"text": "data/text/deep", "lists": ["none", "data/student.csv"]},
}
CODE = {"stages/distill.py": "lr", "pipeline/losses.py": "kl", "pipeline/other.py": "other"}


@pytest.fixture(autouse=True)
def without_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path, content in {
        "dvc.yaml": FLOW,
        "params.yaml": yaml.safe_dump(KNOBS),
        "data/teacher.bin": "teacher",
        "data/text/deep/a.txt": "a",
        "data/text/more/b.txt": "b",
        "data/student/weights": "s",
        "data/rtn/weights": "r",
        "data/packed": "p",
        "data/student.csv": "1",
        "data/rtn.csv": "2",
        **CODE,
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(content)
    return tmp_path


def set_knobs(**changes: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({**KNOBS, **changes}))


def test_a_stage_reads_what_dvc_yaml_says():
    stage_inputs = inputs.read("distill", CODE)
    assert stage_inputs.knobs == {
        "seed": 0,
        "distill.lr": 0.1,
        "distill.freeze": "ov",
        "scheme.weights.bits": 4,
        "scheme.weights.group": 0,
    }
    assert stage_inputs.code == {"stages/distill.py": "lr", "pipeline/losses.py": "kl"}
    assert sorted(stage_inputs.data) == ["data/teacher.bin", "data/text/deep/a.txt", "data/text/more/b.txt"]


def test_a_folder_of_code_is_read_file_by_file():
    """The name of a room is no beginning of another's."""
    Path("dvc.yaml").write_text(FLOW.replace("pipeline/losses.py]", "pipeline/losses]"))
    room = {"pipeline/losses/chunked.py": "kl", "pipeline/losses/page.html": "p"}
    code = {**room, "pipeline/losses_too/x.py": "x", **CODE}
    stage_inputs = inputs.read("distill", code)
    assert stage_inputs.code == {"stages/distill.py": "lr", **room}
    assert stage_inputs.changed(inputs.read("distill", {**code, next(iter(room)): "ce"})) == [next(iter(room))]


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ("targets", ["data/text/deep/a.txt", "data/student.csv"]),
        ("evaluate@student", ["data/student/weights", "data/text/more/b.txt", "data/student.csv", "data/teacher.bin"]),
        ("evaluate@rtn", ["data/rtn/weights", "data/text/more/b.txt", "data/rtn.csv", "data/teacher.bin"]),
        ("export@student-format0", ["data/student/weights", "data/packed"]),
        ("sub/dvc.yaml:export@rtn-format0", ["data/rtn/weights", "data/packed"]),
    ],
)
def test_paths_are_worked_out_as_dvc_does(running: str, expected: list[str], monkeypatch: pytest.MonkeyPatch):
    """DVC tells a stage its name; the last one is of a dvc.yaml elsewhere."""
    monkeypatch.setenv("DVC_STAGE", running)
    assert [*inputs.read(running.rpartition(":")[2].partition("@")[0], CODE).data] == expected


@pytest.mark.parametrize("running", ["", "distill", "evaluate@none"])
def test_without_a_name_of_dvcs_it_is_what_the_stages_of_a_foreach_have_in_common(
    running: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DVC_STAGE", running)
    stage_inputs = inputs.read("evaluate", CODE)
    assert [*stage_inputs.data] == ["data/text/more/b.txt", "data/teacher.bin"]
    assert (stage_inputs.knobs, stage_inputs.code) == ({"evaluate.limit": 3, "evaluate.text": "data/text"}, {})


def test_a_path_whose_knob_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch):
    """Its stage, which checks the knobs, says so."""
    monkeypatch.setenv("DVC_STAGE", "targets")
    set_knobs(targets={"text": "data/text/deep"})
    assert [*inputs.read("targets", CODE).data] == ["data/text/deep/a.txt"]


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
    Path("data/teacher.bin").write_text("another")
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


def touch(file: Path) -> None:
    os.utime(file, (0, 0))


def copy_over(file: Path) -> None:
    """As DVC does when it links a file anew."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)


@pytest.mark.parametrize("renew", [touch, copy_over])
def test_a_file_with_the_same_bytes_is_the_same(renew):
    before = inputs.read("distill", CODE)
    renew(Path("data/teacher.bin"))
    assert before.changed(inputs.read("distill", CODE, before)) == []


def test_other_bytes_of_the_same_length_are_not(monkeypatch: pytest.MonkeyPatch):
    before = inputs.read("distill", CODE)
    Path("data/teacher.bin").write_text("reacher")
    assert before.changed(inputs.read("distill", CODE, before)) == ["data/teacher.bin"]


def artifact(folder: str, content: str) -> Path:
    with contract.writing(folder, contract.CORPUS) as draft:
        (draft.path / "weights").write_text(content)
    return Path(folder) / "weights"


def test_only_what_no_manifest_lists_and_what_looks_changed_is_read(monkeypatch: pytest.MonkeyPatch):
    """Weights of gigabytes are not, at a stage's beginning and end, unless they were touched."""
    weights = artifact("data/student", "weights")
    monkeypatch.setenv("DVC_STAGE", "export@student-format0")
    hashed: list[str] = []
    monkeypatch.setattr(inputs, "sha256", lambda file: hashed.append(file.name) or contract.sha256(file))
    before = inputs.read("export", CODE)
    assert hashed == ["manifest.json", "packed"]
    assert before.changed(inputs.read("export", CODE, before)) == []
    assert len(hashed) == 2
    touch(weights)
    assert before.changed(inputs.read("export", CODE, before)) == []
    assert hashed[2:] == ["weights"]
    weights.write_text("others!")
    assert before.changed(inputs.read("export", CODE, before)) == ["data/student/weights"]


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"files": []}', '{"files": {"weights": 1}}'])
def test_a_manifest_that_is_none_is_for_the_stage_to_complain_of(manifest: str, monkeypatch: pytest.MonkeyPatch):
    Path("data/student/manifest.json").write_text(manifest)
    monkeypatch.setenv("DVC_STAGE", "export@student-format0")
    assert "data/student/weights" in inputs.read("export", CODE).data


def test_knobs_have_dotted_names():
    assert inputs.flat({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


def during(edit, monkeypatch: pytest.MonkeyPatch) -> str | int | None:
    """How a stage ends during which there was an edit."""
    Path("versions.yaml").write_text("{}")
    monkeypatch.setattr("sys.argv", ["distill"])
    monkeypatch.setattr(run, "BEGAN_WITH", stages.sources())

    def work() -> None:
        run.begin("distill")
        (progress.scratch("distill", {}) / "checkpoint").touch()
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
    assert [*progress.SCRATCH.glob("distill/*/checkpoint")], "they are removed when all is well, and no sooner"


def test_a_file_that_was_touched_does_no_harm_and_checkpoints_go_last(monkeypatch: pytest.MonkeyPatch):
    assert during(lambda: os.utime("data/teacher.bin", (0, 0)), monkeypatch) == 0
    assert not (progress.SCRATCH / "distill").exists()


def test_edits_of_what_it_does_not_read_do_no_harm(monkeypatch: pytest.MonkeyPatch):
    def edit() -> None:
        set_knobs(evaluate={"limit": 9}, scheme={**KNOBS["scheme"], "activations": {"bits": 8}})
        Path("pipeline/other.py").write_text("more")
        Path("pipeline/losses.py").write_text("kl")  # the same again

    assert during(edit, monkeypatch) == 0
