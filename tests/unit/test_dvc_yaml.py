"""dvc.yaml: each stage lists all that its numbers come from, and nothing else."""

import ast
import re
from collections.abc import Iterator

import pytest
import yaml

from pipeline.knobs import params
from tests.unit.imports import MODULES, PINS, ROOT, needed, outside, room

WITHOUT_NUMBERS = frozenset({"knobs", "artifacts", "preflight"})  # rooms that no number comes from, see dvc.yaml


SHARED_SECTIONS = {"seed", "scheme"}


def stages() -> Iterator[tuple[str, dict]]:
    """Name and description of each stage in dvc.yaml, those of a foreach or a matrix by what they have in common."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        yield name, stage.get("do", stage)


STAGES = dict(stages())


BROUGHT = {
    "transformers": ["tokenizers"],
    "pandas": ["numpy"],
    "lm_eval": ["numpy"],
    "datasets": ["pyarrow"],
    "gguf": ["numpy"],
    "onnx": ["numpy"],
    "parquet": ["pyarrow"],
}


def sections(stage: str) -> list[str]:
    """The sections of params.yaml that a stage depends on, whole or one knob of them."""
    return [entry.partition(".")[0] for entry in STAGES[stage]["params"] if isinstance(entry, str)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_its_script_and_its_section_share_one_name(stage: str):
    (script,) = re.findall(r"python -m ([\w.]+)", STAGES[stage]["cmd"])
    assert script == f"stages.{stage}"
    assert MODULES[script] == ROOT / "stages" / f"{stage}.py"
    assert stage in sections(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_script_and_on_every_room_that_its_numbers_come_from(stage: str):
    """The rooms of all that it imports, directly or not, and not only for rooms that no number comes from."""
    rooms = {room(name) for name in needed(f"stages.{stage}", WITHOUT_NUMBERS)} - WITHOUT_NUMBERS - {""}
    wanted = {f"stages/{stage}.py", *(f"pipeline/{name}" for name in rooms)}
    assert {dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline/", "stages/"))} == wanted


def test_the_flow_is_read_in_one_look():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 245
    assert [name for name, stage in STAGES.items() if not stage.get("desc")] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_version_of_every_library_that_its_numbers_come_from(stage: str):
    """Of those that its modules import, and of those through which these do the work."""
    direct = {library for name in needed(f"stages.{stage}") for library in outside(name)}
    brought = {other for library in direct for other in BROUGHT.get(library, [])}
    (listed,) = [entry["versions.yaml"] for entry in STAGES[stage]["params"] if isinstance(entry, dict)]
    assert listed == sorted((direct | brought) - {"parquet"})


def test_the_versions_that_stages_depend_on_are_those_that_are_installed_from_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = dict(line.split("==") for line in lines if "==" in line)
    assert {library: constraints.get(library) for library in PINS if library != "python"} | {
        "python": PINS["python"]
    } == PINS
    assert {*PINS} == {library for stage in STAGES for library in STAGES[stage]["params"][-1]["versions.yaml"]}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_down_what_it_ran_with_where_no_other_stage_reads_it(stage: str):
    (record,) = re.findall(r"--environment (\S+)", STAGES[stage]["cmd"])
    assert record in STAGES[stage]["outs"]
    assert record.partition("@")[0].removesuffix(".json") == f"data/environments/{stage}"
    assert not [name for name, other in STAGES.items() if any(dep.startswith("data/env") for dep in other["deps"])]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_path_that_it_reads(stage: str):
    """A path in the command, alone or as name=path, is either a dep or an out."""
    description = STAGES[stage]
    outs = [*description.get("outs", []), *description.get("metrics", [])]
    known = {*description["deps"], *(next(iter(out)) if isinstance(out, dict) else out for out in outs)}
    for path in re.findall(r"--\w+ (?:\w+=)?(\S+)", description["cmd"]):
        assert path in known or any(other.startswith(f"{path}/") for other in known), path


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_every_section_of_knobs_that_it_reads(stage: str):
    tree = ast.parse(MODULES[f"stages.{stage}"].read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in params.Params.__dataclass_fields__
        and not (isinstance(node.value, ast.Name) and node.value.id in ("args", "references"))
    }
    assert read
    assert read <= {*sections(stage)}


def test_every_section_of_knobs_has_its_stage_and_all_load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)  # some knobs are paths relative to it
    params.load("params.yaml")
    sections = yaml.safe_load((ROOT / "params.yaml").read_text()).keys()
    assert sections - SHARED_SECTIONS == STAGES.keys()
    assert list(sections) == [*params.Params.__dataclass_fields__]
    scripts = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__", "run"}
    assert scripts == STAGES.keys()
