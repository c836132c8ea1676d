import math
import re

import pytest

from pipeline.report import fidelity, score_plots
from tests.unit.report.pictures import words_of


def scores_of(kl: float, dialogue: bool = True) -> dict[str, float]:
    """A variant's, in the proportions of a true one's."""
    scores = {
        "kl": kl, "kl.stderr": kl / 20, "kl.median": kl / 3, "kl.p99": 9 * kl, "kl.p999": 30 * kl, "kl.max": 60 * kl,
        "top1": 0.8, "top1.stderr": 0.005,
        "kl.at.63": kl / 2, "kl.at.63.stderr": kl / 30, "kl.at.15": kl, "kl.at.15.stderr": kl / 9,
        "long.kl": kl, "long.kl.at.15": 2 * kl, "long.kl.at.255": kl / 4,
    }  # fmt: skip
    answers = {
        "dialogue.kl": kl, "dialogue.kl.turn1": kl / 2, "dialogue.kl.turn1.stderr": kl / 50,
        "dialogue.kl.turn2": kl, "dialogue.kl.turn2.stderr": kl / 50,
        "dialogue.top1": 0.9, "dialogue.top1.stderr": 0.01,
        "dialogue.divergence": 12.5, "dialogue.divergence.stderr": 1.25, "dialogue.divergence.median": 9.0,
        "dialogue.divergence.never": 0.125,
    }  # fmt: skip
    return scores | (answers if dialogue else {})


SCORES = {"rtn": scores_of(0.2), "ptq": scores_of(0.1), "student": scores_of(0.05)}


def test_a_row_a_variant_with_its_tail():
    header, rtn, _, student = fidelity.rows(SCORES)
    assert header == ["", "mean", "median", "99 %", "99.9 %", "max", "same top, %"]
    assert rtn == ["RTN", "0.200 ± 0.01", "0.0667", "1.8", "6", "12", "80.0 ± 0.5"]
    assert student[0] == "student"
    assert all(len(row) == len(header) for row in fidelity.rows(SCORES))


def test_dialogues_have_a_table_where_there_are_any():
    header, rtn, *_ = fidelity.dialogues(SCORES)
    assert rtn == ["RTN", "0.100 ± 0.004", "0.200 ± 0.004", "90.0 ± 1.0", "12.5 ± 1.2 (median 9)", "12"]
    assert len(header) == len(rtn)
    assert fidelity.dialogues({variant: scores_of(0.1, dialogue=False) for variant in SCORES}) == []


def test_positions_are_in_order_and_by_text():
    table = fidelity.by_position(SCORES["rtn"])
    assert table[["text", "end"]].to_numpy().tolist() == [
        ["held out", 15], ["held out", 63], ["long text", 15], ["long text", 255],
    ]  # fmt: skip
    assert table["kl"].tolist() == pytest.approx([0.2, 0.1, 0.4, 0.05])
    assert [math.isnan(error) for error in table["error"]] == [False, False, True, True]


def test_the_picture_has_a_line_a_variant_and_text_and_its_bands():
    picture = score_plots.by_position({name: fidelity.by_position(scores) for name, scores in SCORES.items()})
    said = words_of(picture)
    assert {f"{name}, {text}" for name in SCORES for text in ("held out", "long text")} <= {*said}
    assert {text for text in said if text.startswith("to ")} == {"to 15", "to 63", "to 255"}
    assert len(re.findall("stroke-dasharray", picture)) >= 3


def test_the_section_has_all_of_it():
    section = fidelity.section(SCORES)
    assert section["plot"].startswith("<svg")
    assert section["rows"] == fidelity.rows(SCORES)
