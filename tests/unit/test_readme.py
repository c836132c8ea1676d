"""What the README tells a reader to type must be there: knobs, modules, make targets, files."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.flow.knobs import changed, missing

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXPERIMENTS = [line.partition("#")[0] for line in README.splitlines() if "dvc exp run -S" in line]


@pytest.mark.parametrize("line", EXPERIMENTS)
def test_an_experiments_knobs_are_there_and_make_sense(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)  # some knobs are paths relative to it
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    given = {knob: yaml.safe_load(value) for knob, value in re.findall(r"-S ([\w.]+)=(\S*)", line)}
    given = {knob: "" if value is None else value for knob, value in given.items()}
    assert given
    assert missing(tree, given) == {}
    if "teacher.path" in given:
        given["teacher.path"] = str(tmp_path)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(changed(tree, given)))
    params.load(file)


def test_modules_make_targets_and_files_are_there():
    modules = set(re.findall(r"-m ((?:pipeline|stages|tests)[\w.]*)", README))
    assert modules
    for name in modules:
        where = ROOT / name.replace(".", "/")
        assert where.with_suffix(".py").is_file() or (where / "__main__.py").is_file(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^ *`?make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    tree = README.partition("## The tree")[2]
    for name in re.findall(r"[\w./-]+\.(?:py|yaml)\b|[\w-]+/(?= )", tree):
        assert list(ROOT.rglob(name.rstrip("/"))), name
