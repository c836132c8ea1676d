"""Where a number comes from, as text and as a picture."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.audit import picture, trace
from pipeline.audit.cache import Cache
from tests.unit.audit.conftest import digest

METRICS = {"kl.student": 0.25, "kl.student.stderr": 0.01}
SHA = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """It has the manifest of data/corpus, which nothing was made before."""
    dvc_cache = Cache(tmp_path / "cache")
    manifest = json.dumps(
        {"facts": {"source": "path", "length": 8}, "files": {"a.json": "0" * 64, "model.safetensors": SHA}}
    ).encode()
    listing = [{"md5": digest(manifest), "relpath": "manifest.json"}]
    for md5, content in ((digest(manifest), manifest), ("c" * 32 + ".dir", json.dumps(listing).encode())):
        dvc_cache.path(md5).parent.mkdir(parents=True, exist_ok=True)
        dvc_cache.path(md5).write_bytes(content)
    return dvc_cache


def told(version, cache: Cache) -> list[str]:
    return list(trace.lines(version, "kl.student", cache))


def test_a_chain_ends_with_the_sha256_of_the_file_it_all_began_with(files: dict[str, bytes], version, cache: Cache):
    lines = told(version("a", files, METRICS), cache)
    assert lines[0] == "kl.student = 0.25 ± 0.01"
    assert [line.strip() for line in lines if " <- " in line] == [
        f"data/report/summary.json  {'6' * 12}  <- report",
        f"data/scores/student.json  {'5' * 12}  <- evaluate@student",
        f"data/corpus  {'c' * 12}  <- make",
    ]
    below = "\n".join(line.strip() for line in lines[lines.index(next(x for x in lines if "<- make" in x)) :])
    assert "knobs length=8, stop=, seed=0" in below
    assert "with torch 2.0" in below
    assert "from source path" in below
    assert f"as model.safetensors sha256 {SHA}" in below


def test_a_number_of_a_proof_comes_from_the_proofs(files: dict[str, bytes], version, cache: Cache):
    lock, name = yaml.safe_load(files["dvc.lock"]), "proof.gguf.llama.cpp.kl_student.student"
    corpus, proof = (
        {"path": f"data/{folder}", "md5": f"{digit * 32}.dir"} for folder, digit in (("corpus", "c"), ("proof", "7"))
    )
    lock["stages"]["prove"] = {"cmd": "prove", "deps": [corpus], "outs": [proof]}
    proven = version("a", {**files, "dvc.lock": yaml.safe_dump(lock).encode()}, {name: 0.25})
    assert [line.strip() for line in trace.lines(proven, name, cache) if " <- " in line] == [
        f"data/report/summary.json  {'6' * 12}  <- report",
        f"data/proof  {'7' * 12}  <- prove",
        f"data/corpus  {'c' * 12}  <- make",
    ]
    assert version("b", files, {name: 0.25}).sources(name) == []


def test_what_the_cache_does_not_have_is_said(files: dict[str, bytes], version, tmp_path: Path):
    lines = told(version("a", files, METRICS), Cache(tmp_path / "nothing"))
    assert lines[-1].strip() == "it is not in the cache; `dvc pull` brings it"


def test_what_is_stale_is_marked_with_the_reason(files: dict[str, bytes], version, cache: Cache):
    lines = told(version("a", {**files, "score.py": b"new"}, METRICS), cache)
    assert [line.partition("STALE: ")[2] for line in lines if "STALE" in line] == [
        "evaluate@student is stale",
        "score.py has changed",
    ]


def test_the_picture_has_each_artifact_and_an_arrow_from_what_it_was_made_of(files: dict[str, bytes], version):
    """A report reads scores, which read the corpus."""
    sound = version("a", files, METRICS)
    links = list(trace.links(sound, "kl.student"))
    drawn = picture.lineage(sound, links, {"data/corpus": f"sha256 {SHA[:8]}"})
    labels = re.findall(r"<text [^>]*>([^<]+)</text>", drawn)
    assert [label for label in labels if label.startswith("data/")] == [
        "data/corpus",
        "data/scores/student.json",
        "data/report/summary.json",
    ]
    assert f"sha256 {SHA[:8]}" in labels
    assert {f"make  {'c' * 8}", f"evaluate@student  {'5' * 8}", f"report  {'6' * 8}"} <= {*labels}
    alone = picture.lineage(sound, links[:1], {})
    patches = [len(re.findall(r'<g id="patch_\d+">', svg)) for svg in (alone, drawn)]
    assert patches[1] - patches[0] == 4, "two more boxes, and two arrows"
    assert picture.STALE not in drawn
    stale = version("a", {**files, "score.py": b"new"}, METRICS)
    assert picture.lineage(stale, list(trace.links(stale, "kl.student")), {}).count(picture.STALE) == 2
