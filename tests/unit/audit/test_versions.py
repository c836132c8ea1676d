"""Which versions there are in a project, by which names, and what each says of itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.audit import __main__ as command
from pipeline.audit import versions
from pipeline.audit.cache import Cache
from pipeline.audit.trees import Git
from tests.unit.audit.conftest import digest, lock_of
from tests.unit.flow.conftest import commit, git

SUMMARY = "data/report/summary.json"


@pytest.fixture
def project(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two stages' project in Git and DVC, its report's numbers in Git, too."""
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    for key in ("user.name", "user.email"):
        git(tmp_path, "config", key, "test@example.org")
    init = [sys.executable, "-m", "dvc", "init", "--quiet"]
    subprocess.run(init, cwd=tmp_path, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, check=True)
    score(tmp_path, files, 0.5)
    commit(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def score(where: Path, files: dict[str, bytes], kl: float) -> None:
    """Write the project with a report of that number."""
    numbers = json.dumps({"kl.student": kl}).encode()
    lock = lock_of(files)
    lock["stages"]["report"]["outs"][0]["md5"] = digest(numbers)
    for path, content in {**files, SUMMARY: numbers, "dvc.lock": yaml.safe_dump(lock).encode()}.items():
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_bytes(content)


def load(where: Path, name: str) -> versions.Version:
    with Git(where) as repository:
        return versions.load(repository, name, Cache(where / ".dvc/cache/files/md5"))


def experiment(where: Path, name: str, base: str, head: str) -> None:
    """A DVC experiment of that name, as DVC keeps it."""
    git(where, "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", head)


def test_commits_tags_branches_and_experiments_have_their_own_numbers(files: dict[str, bytes], project: Path):
    first = git(project, "rev-parse", "HEAD").strip()
    git(project, "tag", "-a", "-m", "a tag", "v1")
    git(project, "switch", "--quiet", "-c", "trial")
    score(project, files, 0.4)
    tried = commit(project)
    experiment(project, "mild-newt", first, tried)
    git(project, "switch", "--quiet", "main")
    score(project, files, 0.3)
    numbers = {name: load(project, name).metrics["kl.student"] for name in ("v1", "trial", "mild-newt", "workspace")}
    assert numbers == {"v1": 0.5, "trial": 0.4, "mild-newt": 0.4, "workspace": 0.3}
    assert load(project, "v1").commit == first, "the commit, not the tag's own object"
    assert not any(load(project, name).stale for name in numbers)
    with pytest.raises(ValueError, match="nowhere: no commit, tag, branch or DVC experiment"):
        load(project, "nowhere")


def test_experiments_of_one_name_are_told_apart_by_where_they_began(files: dict[str, bytes], project: Path):
    bases, tries = [], []
    for kl in (0.4, 0.3):
        bases.append(git(project, "rev-parse", "HEAD").strip())
        score(project, files, kl)
        tries.append(commit(project))
        experiment(project, "try", bases[-1], tries[-1])
    experiment(project, "alone", bases[0], tries[0])
    names = [f"{base[:7]}/try" for base in bases]
    with Git(project) as repository:
        assert versions.experiments_of(repository) == {names[0]: tries[0], names[1]: tries[1], "alone": tries[0]}
    assert [load(project, name).metrics["kl.student"] for name in names] == [0.4, 0.3]
    with pytest.raises(ValueError, match=f"try: several experiments are called so; write .*{names[0]}") as told:
        load(project, "try")
    assert names[1] in str(told.value)


def test_the_predecessor_of_a_commit_is_among_its_ancestors(files: dict[str, bytes], project: Path):
    """Of a merged branch the merge counts: its commits lie beside the others, not between them."""
    git(project, "switch", "--quiet", "-c", "side")
    score(project, files, 0.45)
    beside = commit(project)
    git(project, "switch", "--quiet", "main")
    score(project, {**files, "make.py": b"other"}, 0.4)
    commit(project)
    git(project, "merge", "--quiet", "--no-commit", "-s", "ours", "side")
    score(project, {**files, "make.py": b"other"}, 0.35)
    commit(project)
    assert beside in git(project, "log", "--format=%H", "--", "dvc.lock").split()
    with Git(project) as repository:
        names = versions.default(repository, 10)
        assert names[-1] == versions.HERE
        assert [load(project, name).metrics["kl.student"] for name in names[:-1]] == [0.5, 0.4, 0.35]
    assert beside[:7] not in [name[:7] for name in names]


def test_an_edited_report_is_not_the_reports(files: dict[str, bytes], project: Path):
    assert not load(project, "workspace").stale
    for content in ('{"kl.student": 0.1}', "[]", '{"kl.student": "low"}', '{"kl.student": null}', ""):
        (project / SUMMARY).write_text(content)
        here = load(project, "workspace")
        assert here.stale == {"report": [f"{SUMMARY} is not what report made"]}, content
        assert here.outdated
    assert here.metrics == {}
    commit(project)
    assert load(project, "HEAD").outdated


def audit(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[object, str, str]:
    """Exit status or message, output and errors of the command."""
    monkeypatch.setattr(sys, "argv", ["audit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    return stopped.value.code, *capsys.readouterr()


def test_a_damaged_commit_is_left_out_unless_it_is_asked_for(
    files: dict[str, bytes], project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    (project / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {}\n")
    damaged = commit(project)[:7]
    experiment(project, "after", git(project, "rev-parse", "HEAD").strip(), git(project, "rev-parse", "HEAD~1").strip())
    score(project, files, 0.3)
    commit(project)
    status, shown, errors = audit(capsys, monkeypatch)
    assert status == 0
    assert f"audit: left out {damaged}: dvc.lock is damaged" in errors
    assert "git restore" not in errors, "which would not mend what is committed"
    rows = [line.split() for line in shown.splitlines() if not line.startswith((" ", "version", "the page"))]
    numbers = [next(cell for cell in row if cell.startswith("0.")) for row in rows]
    assert numbers == ["0.5", "0.3", "0.5", "0.3"], "two commits, the experiment, the working tree"
    assert rows[2][0] == "after"
    status, _, _ = audit(capsys, monkeypatch, "HEAD", damaged)
    assert str(status).startswith(f"audit: {damaged}: dvc.lock is damaged")
    (project / "dvc.lock").write_text("{")
    assert "`git restore dvc.lock`" in str(audit(capsys, monkeypatch, "workspace")[0])


def test_versions_are_set_against_a_baseline(
    files: dict[str, bytes], project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    for kl in (0.4, 0.3):
        changed = {**files, "params.yaml": files["params.yaml"].replace(b"seed: 0", b"seed: %d" % round(10 * kl))}
        score(project, changed, kl)
        commit(project)
    git(project, "branch", "old", "HEAD~2")
    _, shown, _ = audit(capsys, monkeypatch, "HEAD~1", "HEAD", "--baseline", "old")
    assert "seed: 0 -> 4" in shown
    assert "seed: 0 -> 3" in shown
    _, shown, _ = audit(capsys, monkeypatch, "HEAD~1", "HEAD")
    assert "seed: 4 -> 3" in shown
    status, _, _ = audit(capsys, monkeypatch, "HEAD", "--metric", "kl.studnet")
    assert "did you mean 'kl.student'" in str(status)
