"""The design's rules that a reader cannot see at a glance: who imports whom, and what a DVC stage depends on."""

import subprocess
import sys

from tests.unit.imports import MODULES, ROOT, imported, needed, room

LAYERS = [
    {"knobs"},
    {"artifacts"},
    {"models", "corpus", "quant", "losses", "statistics"},
    {"rounding"},
    {"calibration"},
    {"signals", "distill", "export", "runtimes", "evaluation"},
    {"preflight", "report", "recommend"},
    {"audit", "chat", "elsewhere"},
    {"publish"},
    {"stages"},
]
BARRED_NAMES = {"utils", "helpers", "common", "base", "registry", "factory"}


FLOW = {name for name in MODULES if f"{name}.".startswith("pipeline.flow.")}
READ_BY_SWEEPS = {
    "pipeline.knobs",
    "pipeline.knobs.long_scheme",
    "pipeline.knobs.params",
    "pipeline.knobs.names",
    "pipeline.knobs.yaml_1_2",
    "pipeline.artifacts",
    "pipeline.artifacts.contract",
    "pipeline.artifacts.dvc_hashes",
    "pipeline.report",
    "pipeline.report.comparison",
    "pipeline.report.sweep_files",
}


def layer(name: str) -> int:
    part = room(name) or "stages"
    (level,) = [i for i, members in enumerate(LAYERS) if part in members]
    return level


def library() -> list[str]:
    return [name for name in MODULES if name.startswith("pipeline.") and name not in FLOW]


def test_the_reader_of_imports_sees_what_python_imports():
    """Against the interpreter: importing a stage runs exactly the modules that the syntax trees name."""
    report = "import sys, stages.export; print(*(m for m in sys.modules if m.split('.')[0] in ('pipeline', 'stages')))"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == needed("stages.export")


def test_a_module_imports_only_its_own_layer_or_lower_ones():
    pairs = [(name, other) for name in library() for other in imported(name) - {"pipeline"}]
    assert len(pairs) > 300
    assert [(name, other) for name, other in pairs if layer(other) > layer(name)] == []


def test_no_module_needs_itself():
    """Not even within a layer: what it imports never comes back to it, whatever way it takes."""
    pairs = [(name, other) for name in MODULES for other in imported(name) - {"pipeline", "stages"}]
    assert [(name, other) for name, other in pairs if name in needed(other)] == []


def test_quantization_knows_tensors_and_not_models():
    assert [name for name in library() if room(name) == "quant" and "pipeline.models" in needed(name)] == []


def test_the_flow_over_the_stages_needs_nothing_of_the_project():
    assert needed("pipeline.flow.repro") <= {"pipeline", *FLOW}
    assert "pipeline.flow.sweep" not in needed("pipeline.flow.repro")


def test_the_flow_over_sweeps_reads_knobs_and_compares_scores_and_knows_no_model():
    assert {other for name in FLOW for other in imported(name)} <= {"pipeline", *FLOW, *READ_BY_SWEEPS}


def test_the_project_does_not_need_the_flow():
    assert not [name for name in MODULES if name not in FLOW and imported(name) & FLOW]


def test_the_library_never_imports_a_stage_and_a_stage_none_but_its_frame():
    pairs = [(name, other) for name in MODULES for other in imported(name) if other.partition(".")[0] == "stages"]
    assert {other for _, other in pairs} == {"stages", "stages.run"}
    assert [name for name, _ in pairs if not name.startswith("stages.")] == []


def test_every_file_has_a_name_that_says_what_is_in_it():
    files = [file for folder in ("pipeline", "stages", "tests") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    assert [str(file) for file in files if file.stem in BARRED_NAMES or file.parent.name in BARRED_NAMES] == []
