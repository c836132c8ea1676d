import json
from pathlib import Path

import pytest

from pipeline.artifacts import contract
from pipeline.artifacts.contract import CORPUS, INT4, MANIFEST, Kind, reading, writing


def write(folder: Path, content: str = "tokens", facts: dict | None = None, kind: Kind = CORPUS) -> Path:
    with writing(folder, kind) as draft:
        (draft.path / "part").mkdir()
        (draft.path / "part" / "inner.txt").write_text(content)
        (draft.path / "outer.txt").write_text("outer")
        draft.facts = facts or {"length": 3}
    return folder


def write_half(folder: Path) -> None:
    with writing(folder, CORPUS) as draft:
        (draft.path / "half.txt").write_text("half")
        raise KeyboardInterrupt


def test_what_was_written_is_read_back(tmp_path: Path):
    folder = write(tmp_path / "corpus", facts={"length": 3, "strategy": "hybrid"})
    assert reading(folder, CORPUS) == {"length": 3, "strategy": "hybrid"}


def test_the_manifest_names_every_file_by_its_sha256(tmp_path: Path):
    manifest = json.loads((write(tmp_path / "corpus", content="abc") / MANIFEST).read_text())
    assert manifest["files"].keys() == {"outer.txt", "part/inner.txt"}
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2, appendix B.1
    assert manifest["files"]["part/inner.txt"] == known


def test_the_same_content_gives_the_same_bytes_wherever_it_is_written(tmp_path: Path):
    first = write(tmp_path / "here" / "corpus", facts={"a": 1, "b": 2.5})
    second = write(tmp_path / "there" / "another-name", facts={"b": 2.5, "a": 1})
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()
    assert contract.fingerprint(first) == contract.fingerprint(second)


@pytest.mark.parametrize("change", [{"content": "other"}, {"facts": {"length": 4}}, {"kind": INT4}])
def test_other_content_facts_or_kind_give_another_fingerprint(tmp_path: Path, change: dict):
    assert contract.fingerprint(write(tmp_path / "a")) != contract.fingerprint(write(tmp_path / "b", **change))


def test_writing_replaces_what_stood_there(tmp_path: Path):
    folder = write(tmp_path / "corpus")
    (folder / "stale.txt").write_text("stale")
    write(folder, content="new")
    assert not (folder / "stale.txt").exists()
    assert (folder / "part" / "inner.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_an_error_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_what_stood_there_before(tmp_path: Path):
    folder = write(tmp_path / "corpus")
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_half(folder)
    assert (folder / MANIFEST).read_bytes() == before
    assert reading(folder, CORPUS) == {"length": 3}


def test_what_a_killed_stage_left_under_way_is_not_taken_along(tmp_path: Path):
    left = tmp_path / ".corpus.part"
    left.mkdir()
    (left / "half.txt").write_text("half")
    folder = write(tmp_path / "corpus")
    assert not (folder / "half.txt").exists()


def test_facts_that_are_not_finite_are_refused_and_leave_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write(tmp_path / "corpus", facts={"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def damage_missing(folder: Path) -> str:
    (folder / "outer.txt").unlink()
    return "outer.txt: missing"


def damage_changed(folder: Path) -> str:
    (folder / "part" / "inner.txt").write_text("tokenz")
    return "part/inner.txt: its content has changed"


def damage_extra(folder: Path) -> str:
    (folder / "part" / "extra.txt").write_text("")
    return "part/extra.txt: not in the manifest"


DAMAGES = [damage_missing, damage_changed, damage_extra]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_the_folder_and_the_stage(tmp_path: Path, damage):
    folder = write(tmp_path / "corpus")
    named = damage(folder)
    with pytest.raises(ValueError, match="synthesize") as caught:
        reading(folder, CORPUS)
    assert named in str(caught.value)
    assert str(folder) in str(caught.value)


def test_all_damages_are_named_at_once(tmp_path: Path):
    folder = write(tmp_path / "corpus")
    named = [damage(folder) for damage in DAMAGES]
    with pytest.raises(ValueError, match="not as it was written") as caught:
        reading(folder, CORPUS)
    assert all(name in str(caught.value) for name in named)


def test_a_card_and_what_a_download_adds_may_lie_beside_an_export_and_nothing_else(tmp_path: Path):
    folder = write(tmp_path / "int4", kind=INT4)
    for name in ("README.md", ".gitattributes", ".cache/huggingface/download/model.gguf.metadata", ".git/HEAD"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("beside")
    assert reading(folder, INT4) == {"length": 3}
    (folder / "part" / "README.md").write_text("deeper")
    damage_changed(folder)
    with pytest.raises(ValueError, match=r"README.md: not in the manifest\n.*inner.txt: its content has changed"):
        reading(folder, INT4)
    corpus = write(tmp_path / "corpus")
    (corpus / "README.md").write_text("beside")
    with pytest.raises(ValueError, match=r"README.md: not in the manifest$"):
        reading(corpus, CORPUS)


@pytest.mark.parametrize("wanted", [INT4, Kind("corpus", CORPUS.version + 1, "synthesize")])
def test_another_kind_or_version_is_named(tmp_path: Path, wanted: Kind):
    message = f"holds 'corpus' version {CORPUS.version}, but '{wanted.name}' version {wanted.version} is needed"
    message += f".*stage: {wanted.stage}"
    with pytest.raises(ValueError, match=message):
        reading(write(tmp_path / "corpus"), wanted)


WHOLE = {"kind": "corpus", "version": 1, "files": {}, "facts": {}}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "it has no files and no facts"),
        ("3", "it has no files and no facts"),
        ('"files facts"', "it has no files and no facts"),
        ('{"kind": "corpus"}', "it has no files and no facts"),
        (json.dumps({**WHOLE, "files": None}), "it has no files"),
        (json.dumps({**WHOLE, "files": []}), "it has no files"),
        (json.dumps({**WHOLE, "files": [["outer.txt", "0"]]}), "it has no files"),
        (json.dumps({**WHOLE, "facts": None}), "it has no facts"),
    ],
)
def test_a_broken_manifest_is_named_and_answered_with_the_stage(tmp_path: Path, content: str, why: str):
    folder = write(tmp_path / "corpus")
    (folder / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json is not a manifest") as caught:
        reading(folder, CORPUS)
    assert f"({why}" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "run `dvc repro` to make it anew (stage: synthesize)" in str(caught.value)


def test_a_manifest_that_is_no_text_is_named(tmp_path: Path):
    folder = write(tmp_path / "corpus")
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"manifest\.json is not a manifest"):
        reading(folder, CORPUS)


@pytest.mark.parametrize("lost", ["kind", "version"])
def test_a_manifest_without_kind_or_version_is_another_kind_or_version(tmp_path: Path, lost: str):
    folder = write(tmp_path / "corpus")
    (folder / MANIFEST).write_text(json.dumps({key: WHOLE[key] for key in WHOLE if key != lost}))
    with pytest.raises(ValueError, match=rf"holds .*None.*but 'corpus' version {CORPUS.version} is needed"):
        reading(folder, CORPUS)


def test_a_path_that_is_a_file_is_no_artifact(tmp_path: Path):
    """Nor is one below a file."""
    file = tmp_path / "corpus"
    file.write_text("{}")
    for path in (file, file / "inner"):
        with pytest.raises(ValueError, match=r"is no corpus artifact: it has no manifest.json.*stage: synthesize"):
            reading(path, CORPUS)


def test_a_folder_without_manifest_and_no_folder_are_answered_with_the_stage(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=r"is no int4 artifact.*stage: export"):
            reading(folder, INT4)


def test_scores_are_written_flat_and_finite(tmp_path: Path):
    contract.write_scores(tmp_path / "scores" / "ptq.json", {"b": 2.0, "a": 0.5})
    assert (tmp_path / "scores" / "ptq.json").read_text() == '{\n "a": 0.5,\n "b": 2.0\n}\n'
    with pytest.raises(ValueError, match="kl"):
        contract.write_scores(tmp_path / "bad.json", {"kl": float("inf"), "top1": 1.0})
    contract.write_scores(tmp_path / "scores" / "rtn.json", {"a": 0.5}, {"text": "ab"})
    assert json.loads((tmp_path / "scores" / "rtn.json").read_text()) == {"a": 0.5, "read": {"text": "ab"}}
    assert [p.name for p in tmp_path.iterdir()] == ["scores"]
