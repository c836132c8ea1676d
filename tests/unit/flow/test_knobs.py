from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.flow import knobs

TREE = {"seed": 0, "scheme": "W4A16", "distill": {"freeze": "ov", "lr": 1e-4}}
TEXT = """\
seed: 0                # every random stream
distill:
  freeze: ov           # which projections
  lr: 1.0e-4           # peak
"""


def test_a_knob_is_found_by_its_dotted_name():
    assert knobs.value(TREE, "distill.lr") == 1e-4
    assert knobs.value(TREE, "seed") == 0
    for name in ("distill.steps", "seed.x", "scheme.weights"):
        with pytest.raises(KeyError):
            knobs.value(TREE, name)


def test_changing_a_tree_leaves_it_alone():
    assert knobs.changed(TREE, {"seed": 1, "distill.freeze": "qk"}) == {
        "seed": 1,
        "scheme": "W4A16",
        "distill": {"freeze": "qk", "lr": 1e-4},
    }
    assert TREE["distill"] == {"freeze": "ov", "lr": 1e-4}


@pytest.mark.parametrize(
    "value", [1e-5, 3e-4, 2, 0, 0.0, False, "", "none", "awq+gptq", ["model.layers.*.q_proj", "a'b"], True, {"bits": 4}]
)
def test_a_written_knob_reads_back_and_comments_stay(tmp_path: Path, value: Any):
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    knobs.write(file, {"distill.lr": value, "seed": 7})
    assert yaml.safe_load(file.read_text()) == {"seed": 7, "distill": {"freeze": "ov", "lr": value}}
    assert "# which projections" in file.read_text()


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        ({"distill.freeze": "none"}, "none"),
        ({"distill.freeze": "none", "distill.lr": 2.0}, "freeze=none lr=2"),
        ({"distill.seed": 1, "other.seed": 2}, "distill.seed=1 other.seed=2"),
        ({"distill.train_norms": True, "seed": 0}, "train_norms=true seed=0"),
    ],
)
def test_a_label_is_as_short_as_tells_knobs_apart(setting: dict[str, Any], label: str):
    assert knobs.label(setting) == label


@given(st.text(max_size=99))
def test_a_slug_is_a_part_of_a_gits_ref_whatever_the_value(value: str):
    """See git check-ref-format: none of its barred characters, no two dots, no dot or dash at an end."""
    slug = knobs.slug({"distill.freeze": value, "distill.seed": 0})
    assert 0 < len(slug) <= knobs.SLUG
    assert not set(slug) & set(" ~^:?*[\\/@{}\"'\x7f\n\t")
    assert ".." not in slug
    assert slug[0] not in ".-"
    assert slug[-1] not in ".-"
