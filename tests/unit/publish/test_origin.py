"""What is behind a folder, where little is; tests/integration/test_publish.py looks at a whole run."""

import subprocess
from pathlib import Path

from pipeline.knobs.scheme import Weights, from_short
from pipeline.publish import origin


def test_a_folder_outside_any_project_has_no_origin(tmp_path: Path):
    made = origin.of(tmp_path)
    assert (made.variant, made.steps, made.scores) == ("", [], {})
    assert made.notes == ["The folder lies in no DVC project, so where it comes from is not known."]


def test_a_folder_that_no_stage_makes_has_none_either(tmp_path: Path):
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "elsewhere").mkdir()
    made = origin.of(tmp_path / "elsewhere")
    assert made.notes == ["No stage of the project makes elsewhere, so where it comes from is not known."]


def test_a_place_on_this_machine_is_not_told():
    assert origin._without_place("/home/me/models/tiny") == "…/tiny"
    assert [origin._without_place(value) for value in ("data/text", "auto", 3, None, [1, 2])] == [
        "data/text", "auto", 3, None, [1, 2],
    ]  # fmt: skip


def test_the_scheme_is_read_short_and_long():
    assert origin._scheme([{"seed": 0}, {"scheme": "W4A8KV4"}]) == from_short("W4A8KV4")
    long = {"scheme.weights.bits": 4, "scheme.weights.symmetric": True, "scheme.weights.group": 32}
    long |= {
        f"scheme.activations.{name}": value for name, value in (("bits", 0), ("symmetric", True), ("dynamic", False))
    }
    long |= {"scheme.activations.observer": "minmax", "scheme.activations.percentile": 99.9}
    long |= {
        "scheme.kv_cache.bits": 0,
        "scheme.kv_cache.symmetric": True,
        "scheme.kv_cache.group": 0,
        "scheme.overrides": [],
    }
    scheme = origin._scheme([long])
    assert scheme is not None
    assert scheme.weights == Weights(4, group=32)
    assert origin._scheme([{"scheme": "X"}]) is None
    assert origin._scheme([{"seed": 0}]) is None
