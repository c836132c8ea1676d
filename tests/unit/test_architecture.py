"""The design's rules that a reader cannot see at a glance: who imports whom, and what a DVC stage depends on."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipeline.knobs import params

ROOT = Path(__file__).parents[2]
LAYERS = [
    {"knobs"},
    {"artifacts"},
    {"models", "corpus", "quant", "losses", "statistics"},
    {"rounding"},
    {"calibration"},
    {"signals", "distill", "export", "evaluation"},
    {"preflight", "report"},
    {"audit"},
    {"stages"},
]
WITHOUT_NUMBERS = frozenset({"knobs", "artifacts", "preflight"})  # rooms that no number comes from, see dvc.yaml
BARRED_NAMES = {"utils", "helpers", "common", "base", "registry", "factory"}
SHARED_SECTIONS = {"seed", "scheme"}


def modules() -> dict[str, Path]:
    """Every module of the library and the stages, packages by their __init__, as dotted name to file."""
    found = {}
    for file in sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/**/*.py")]):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()
FLOW = {name for name in MODULES if f"{name}.".startswith("pipeline.flow.")}
READ_BY_SWEEPS = {
    "pipeline.knobs",
    "pipeline.knobs.params",
    "pipeline.knobs.names",
    "pipeline.artifacts",
    "pipeline.artifacts.contract",
    "pipeline.artifacts.dvc_hashes",
    "pipeline.report",
    "pipeline.report.comparison",
    "pipeline.report.sweep_files",
}


@cache
def imported(name: str) -> frozenset[str]:
    """Modules of the project that a module names in its import statements, wherever they stand in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(other for other in found if other in MODULES and other != name)


@cache
def needed(name: str, ends: frozenset[str] = frozenset()) -> frozenset[str]:
    """All that importing a module runs: itself, what it imports, and the packages that these lie in; but for what is
    imported by modules of some rooms alone."""
    reached, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            parts = module.split(".")
            waiting += [".".join(parts[:i]) for i in range(1, len(parts))]
            waiting += imported(module) if room(module) not in ends else ()
    return frozenset(reached)


def room(name: str) -> str:
    """The room of the library that a module lies in; empty for a stage and for the library itself."""
    return name.split(".")[1] if name.startswith("pipeline.") else ""


def layer(name: str) -> int:
    part = room(name) or "stages"
    (level,) = [i for i, members in enumerate(LAYERS) if part in members]
    return level


def library() -> list[str]:
    return [name for name in MODULES if name.startswith("pipeline.") and name not in FLOW]


def stages() -> Iterator[tuple[str, dict]]:
    """Name and description of each stage in dvc.yaml, those of a foreach or a matrix by what they have in common."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        yield name, stage.get("do", stage)


STAGES = dict(stages())
PINS = yaml.safe_load((ROOT / "versions.yaml").read_text())
OWN_TEXT = {"pydoc_data": "python"}  # what comes with another version of Python, and numbers come from
BROUGHT = {
    "transformers": ["tokenizers"],
    "pandas": ["numpy"],
    "lm_eval": ["numpy"],
    "datasets": ["pyarrow"],
    "gguf": ["numpy"],
    "parquet": ["pyarrow"],
}


def sections(stage: str) -> list[str]:
    """The sections of params.yaml that a stage depends on, whole or one knob of them."""
    return [entry.partition(".")[0] for entry in STAGES[stage]["params"] if isinstance(entry, str)]


@cache
def outside(name: str) -> frozenset[str]:
    """The libraries that a module names in its import statements, wherever they stand in it, as versions.yaml calls
    them; "parquet", where it lets pandas read or write that; and "python", where it reads Python's own help topics."""
    found = {"parquet"} if re.search("(read|to)_parquet", MODULES[name].read_text()) else set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    names = {other.partition(".")[0] for other in found}
    names |= {"python"} & {OWN_TEXT.get(name, "") for name in names}
    return frozenset(library for library in [*PINS, "parquet"] if library.replace("-", "_") in names)


def test_the_reader_of_imports_sees_what_python_imports():
    """Against the interpreter: importing a stage runs exactly the modules that the syntax trees name."""
    report = "import sys, stages.export; print(*(m for m in sys.modules if m.split('.')[0] in ('pipeline', 'stages')))"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == needed("stages.export")


@pytest.mark.parametrize("name", library())
def test_a_module_imports_only_its_own_layer_or_lower_ones(name: str):
    assert {other: layer(other) for other in imported(name) if other != "pipeline" and layer(other) > layer(name)} == {}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_needs_itself(name: str):
    """Not even within a layer: what it imports never comes back to it, whatever way it takes."""
    assert not [other for other in imported(name) - {"pipeline", "stages"} if name in needed(other)]


@pytest.mark.parametrize("name", [name for name in library() if name.startswith("pipeline.quant")])
def test_quantization_knows_tensors_and_not_models(name: str):
    assert "pipeline.models" not in needed(name)


def test_the_flow_over_the_stages_needs_nothing_of_the_project():
    assert needed("pipeline.flow.repro") <= {"pipeline", *FLOW}
    assert "pipeline.flow.sweep" not in needed("pipeline.flow.repro")


def test_the_flow_over_sweeps_reads_knobs_and_compares_scores_and_knows_no_model():
    assert {other for name in FLOW for other in imported(name)} <= {"pipeline", *FLOW, *READ_BY_SWEEPS}


def test_the_project_does_not_need_the_flow():
    assert not [name for name in MODULES if name not in FLOW and imported(name) & FLOW]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("pipeline")])
def test_the_library_never_imports_a_stage(name: str):
    assert not [other for other in imported(name) if other.startswith("stages")]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("stages.")])
def test_stages_import_no_stage_but_their_frame(name: str):
    assert {other for other in imported(name) if other.startswith("stages")} <= {"stages", "stages.run"}


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
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 220
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
        and not (isinstance(node.value, ast.Name) and node.value.id == "args")
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


def test_every_file_has_a_name_that_says_what_is_in_it():
    files = [file for folder in ("pipeline", "stages", "tests") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    assert [str(file) for file in files if file.stem in BARRED_NAMES or file.parent.name in BARRED_NAMES] == []
