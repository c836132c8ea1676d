"""What goes to the hub: a recording stand-in at huggingface_hub's own boundary, and an endpoint that is not there."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.publish import hub


class Recorder:
    """Stands for HfApi; keeps what it was asked for, and what the folder held then."""

    endpoint = "https://hub.test"
    calls: list[tuple[str, dict]]

    def __init__(self) -> None:
        Recorder.calls = []

    def create_repo(self, repo_id: str, **options: object) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        held = {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in folder_path.rglob("*") if p.is_file()}
        self.calls.append(("upload_folder", {"repo_id": repo_id, "held": held}))
        return SimpleNamespace(repo_url=f"{self.endpoint}/{repo_id}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "gguf"
    (where / "deep").mkdir(parents=True)
    (where / "model.gguf").write_bytes(b"weights")
    (where / "deep/manifest.json").write_bytes(b"{}")
    return where


@pytest.mark.parametrize("public", [False, True])
def test_all_files_and_the_card_go_up_and_nothing_is_written_into_the_folder(
    public: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub, "HfApi", Recorder)
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    (folder / ".cache/huggingface").mkdir(parents=True)
    for left in ("README.md", ".gitattributes", ".cache/huggingface/CACHEDIR.TAG"):
        (folder / left).write_bytes(b"of a download")
    before = sorted(folder.rglob("*"))
    assert hub.upload(folder, "me/small", "the card ±", public) == "https://hub.test/me/small"
    (first, created), (second, uploaded) = Recorder.calls
    assert (first, created) == ("create_repo", {"repo_id": "me/small", "private": not public, "exist_ok": True})
    expected = {"model.gguf": b"weights", "deep/manifest.json": b"{}", "README.md": "the card ±".encode()}
    assert (second, uploaded) == ("upload_folder", {"repo_id": "me/small", "held": expected})
    assert sorted(folder.rglob("*")) == before
    assert hub.files(folder, "the card ±") == {name: len(held) for name, held in sorted(expected.items())}


def test_huggingface_hub_takes_the_links_for_files(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Its own preparation of a commit, which reads what the links lead to; it has the hub check the header first."""
    from huggingface_hub import HfApi

    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *_, **__: None)
    with hub._with_card(folder, "card") as whole:
        operations = HfApi()._prepare_upload_folder_additions(whole, path_in_repo="", repo_type="model")
        sizes = {operation.path_in_repo: operation.upload_info.size for operation in operations}
    assert sizes == {"README.md": 4, "deep/manifest.json": 2, "model.gguf": 7}


def test_without_a_token_nothing_is_asked_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    monkeypatch.setattr(hub, "HfApi", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=r"there is no token for the hub; `hf auth login`, or set HF_TOKEN"):
        hub.upload(folder, "me/small", "card", False)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub at http://127.0.0.1:9 is out of reach: "),
        ({"HF_HUB_OFFLINE": "1"}, "the hub is out of reach: HF_HUB_OFFLINE is set"),
    ],
)
def test_a_hub_that_is_out_of_reach_is_told_of_in_a_line(setting: dict[str, str], said: str, folder: Path):
    """In a process of its own, as huggingface_hub reads these when it is imported."""
    code = "import sys; from pathlib import Path; from pipeline.publish import hub\n"
    code += "try: hub.upload(Path(sys.argv[1]), 'me/small', 'card', False)\nexcept ValueError as error: print(error)"
    outer = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**outer, **setting, "HF_TOKEN": "token"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize("name", ["me/a b", "me/small/er", "-me/small", "me/" + "x" * 100, "me/small.git"])
def test_a_name_that_the_hub_does_not_take_is_refused(name: str):
    with pytest.raises(ValueError, match="is no name of a repository"):
        hub.check_name(name)


def test_a_name_has_an_owner():
    hub.check_name("me/small-1.0_x")
    with pytest.raises(ValueError, match="'small' names no owner; write it as owner/name"):
        hub.check_name("small")
