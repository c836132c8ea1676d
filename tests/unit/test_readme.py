"""What the documents tell a reader to type must be there: knobs, modules, make targets, files, links."""

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides, to_hydra_overrides

from pipeline.knobs import params

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(file.read_text(encoding="utf-8") for file in DOCUMENTS)
EXPERIMENTS = [line.partition("#")[0] for line in TEXT.splitlines() if line.startswith("    dvc exp run -S")]
THERE = {"teacher.path": "", "evaluate.benchmarks": str(ROOT / "data/benchmarks")}  # for paths that the reader has


@pytest.mark.parametrize("line", EXPERIMENTS)
def test_an_experiments_knobs_are_there_and_make_sense(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a shell and DVC read the line: no knob that there is not, and no comma taken for a sweep."""
    monkeypatch.chdir(ROOT)  # some knobs are paths relative to it
    words = shlex.split(line)
    overrides = [word for flag, word in pairwise(words) if flag == "-S"]
    assert overrides
    assert not any(override.is_sweep_override() for override in to_hydra_overrides(overrides)) or "--queue" in words
    file = tmp_path / "params.yaml"
    shutil.copy2(ROOT / "params.yaml", file)
    names = [override.partition("=")[0] for override in overrides]
    apply_overrides(
        file, [f"{n}={THERE[n] or tmp_path}" if n in THERE else g for n, g in zip(names, overrides, strict=True)]
    )
    assert yaml.safe_load(file.read_text()) != yaml.safe_load((ROOT / "params.yaml").read_text())
    params.load(file)


def test_modules_make_targets_and_files_are_there():
    modules = set(re.findall(r"-m ((?:pipeline|stages|tests)[\w.]*)", TEXT))
    assert modules
    for name in modules:
        where = ROOT / name.replace(".", "/")
        assert where.with_suffix(".py").is_file() or (where / "__main__.py").is_file(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^ *`?make ([a-z-]+)", TEXT, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    tree = TEXT.partition("## The tree")[2].partition("\n# ")[0]
    for name in re.findall(r"[\w./-]+\.(?:py|yaml)\b|[\w-]+/(?= )", tree):
        assert list(ROOT.rglob(name.rstrip("/"))), name


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path):
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        page = file.parent / path if path else file  # a heading alone is of this page
        assert page.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_the_readme_is_a_page_and_each_document_says_what_to_read_next():
    """docs/schemes.md is made by `pipeline.recommend`."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    for file in (ROOT / "docs").glob("*.md"):
        last_line = file.read_text(encoding="utf-8").rstrip().splitlines()[-1]
        assert file.name == "schemes.md" or re.fullmatch(r"Next: \[[\w -]+\]\([\w./-]+\)\.", last_line), file.name


def test_an_entry_of_the_log_is_short():
    for entry in (ROOT / "LOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        assert len([line for line in entry.splitlines() if line.strip()]) <= 26, entry.splitlines()[0]
