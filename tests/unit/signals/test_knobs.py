"""The knobs of analyze and inspect that make no sense are refused with all others, before any work."""

from pathlib import Path

import pytest
import yaml

from pipeline.knobs import params

ROOT = Path(__file__).parents[3]


def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **sections: dict) -> list[str]:
    monkeypatch.chdir(ROOT)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, knobs in sections.items():
        tree[section].update(knobs)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(tree))
    try:
        params.load(file)
    except ValueError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return []


@pytest.mark.parametrize(
    ("section", "knobs", "message"),
    [
        ("analyze", {"sensitivity_sequences": -1}, "analyze.sensitivity_sequences: must be at least 0, got -1"),
        ("analyze", {"sequences": 2, "sensitivity_sequences": 3}, "analyze.sensitivity_sequences: 3 are more than"),
        ("inspect", {"sensitivity_sequences": 99}, "inspect.sensitivity_sequences: 99 are more than analyze.sequences"),
        ("analyze", {"average_bits": 1.5}, "analyze.average_bits: must be at least 2, got 1.5"),
        ("analyze", {"plan_bits": [4, 8], "average_bits": 3.9}, "analyze.average_bits: must be at least 4, got 3.9"),
        ("analyze", {"plan_bits": []}, "analyze.plan_bits: expected a list with at least one entry"),
        ("analyze", {"plan_bits": [4, 9]}, "analyze.plan_bits[1]: "),
    ],
)
def test_it_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, knobs: dict, message: str
):
    (problem,) = problems(tmp_path, monkeypatch, **{section: knobs})
    assert problem.startswith(message)


def test_what_makes_sense_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fine = {"sensitivity_sequences": 0, "plan_bits": [4, 8], "average_bits": 9.0}
    assert problems(tmp_path, monkeypatch, analyze=fine, distill={"freeze": "auto"}) == []
