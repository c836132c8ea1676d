"""Accuracy by level, from small made answers of which it is known what they show."""

import math

import numpy as np
import pandas as pd

from pipeline.evaluation import items
from pipeline.report import levels, page, plots
from pipeline.report.margin import ITEM
from tests.unit.report.pictures import drawn_in, words_of
from tests.unit.report.test_page import CONTENT, Resources

NAMES = ("teacher", "rtn", "ptq", "student")
NOTHING: dict[str, dict[str, float]] = {name: {} for name in NAMES}


def answered(task: str, rights: dict[str, list[int]], group: str = "long", size: int = 1, choices: int = 8):
    """Of each level its items; so many in a row are a cluster, which is numbered anew in each level."""
    rows = [(level, i, right) for level, column in rights.items() for i, right in enumerate(column)]
    return items.answers(
        {
            "task": task, "item": place, "hash": f"{task}{place}", "prediction": 0, "correct": bool(right),
            "log_likelihoods": [-1.0] * choices, "group": group, "part": "retrieval", "level": level,
            "cluster": i // size,
        }
        for place, (level, i, right) in enumerate(rows)
    )  # fmt: skip


def of_all(teacher: pd.DataFrame, **others: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {name: others.get(name, teacher) for name in NAMES}


def shown(answers: dict[str, pd.DataFrame], scores: dict[str, dict[str, float]] | None = None):
    section = levels.section(answers, scores or NOTHING)
    assert section is not None
    return section


LINES = {"72 pairs": [1, 0, 0, 0], "8 pairs": [1, 1, 1, 1], "24 pairs": [1, 1, 0, 0]}


def test_levels_stand_by_number_not_by_text():
    teacher = answered("key_value", LINES)
    (table,) = shown(of_all(teacher))["tables"]
    (task,) = table["tasks"]
    assert (task["name"], task["of"]) == ("key_value", "long: retrieval")
    assert [row["level"] for row in task["rows"]] == ["8 pairs", "24 pairs", "72 pairs"]
    assert [row["cells"][0]["accuracy"] for row in task["rows"]] == ["100.0 ± 0.0", "50.0 ± 28.9", "25.0 ± 25.0"]


def test_levels_without_a_number_stand_as_the_task_compares_them_or_by_name():
    by_item = answered("attacked", {"clean": [1, 0], "attacked": [0, 0]}).set_index(ITEM)
    assert levels.of_task(by_item, "attacked") == ["attacked", "clean"]
    reversed_ = answered("label_mapping", {"12 shots": [1, 0], "0 shots": [0, 0]}).set_index(ITEM)
    assert levels.of_task(reversed_, "label_mapping") == ["0 shots", "12 shots"]
    rules = answered("agreement", {"verb": [1, 0], "determiner": [0, 0], "": [1]}).set_index(ITEM)
    assert levels.of_task(rules, "agreement") == ["determiner", "verb"]


def test_a_variants_change_is_of_the_same_items_over_their_clusters():
    """Pairs that are right and wrong together: half the independent ones, so the error is that of two, not of four."""
    right, worse = np.repeat([1, 1, 1, 0, 1, 1], 2), np.repeat([1, 0, 1, 0, 0, 1], 2)
    of = {"8 lines": [*right], "16 lines": [*right]}
    teacher = answered("lines", of, size=2)
    student = answered("lines", {**of, "16 lines": [*worse]}, size=2)
    shuffled = student.sample(frac=1, random_state=0)
    (table,) = shown(of_all(teacher, student=shuffled))["tables"]
    eight, sixteen = table["tasks"][0]["rows"]
    assert eight["asked"] == sixteen["asked"] == "12 in 6"
    assert [cell["apart"] for cell in eight["cells"]] == ["", *["+0.0 ± 0.0"] * 3]
    change = worse[::2] - right[::2]
    error = change.std(ddof=1) / math.sqrt(len(change))
    assert sixteen["cells"][-1] == {"accuracy": "50.0 ± 22.4", "apart": f"-33.3 ± {100 * error:.1f}"}


def test_one_cluster_alone_has_no_error():
    teacher = answered("lines", {"8 lines": [1, 0], "16 lines": [1, 1]}, size=2)
    (table,) = shown(of_all(teacher))["tables"]
    assert table["tasks"][0]["rows"][0]["cells"][0]["accuracy"] == "50.0"


def test_a_task_of_one_level_has_no_rows_and_without_any_there_is_no_section():
    piqa = answered("piqa", {"": [1, 0, 1]}, "basic")
    assert levels.section(of_all(piqa), NOTHING) is None
    both = pd.concat([piqa, answered("lines", {"8 lines": [1, 0], "64 lines": [0, 0]})])
    section = shown(of_all(both))
    assert [task["name"] for table in section["tables"] for task in table["tasks"]] == ["lines"]


def test_a_task_of_many_levels_is_folded():
    subjects = {f"subject {i}": [1, 0] for i in range(levels.MANY + 1)}
    both = pd.concat([answered("mmlu", subjects, "emergent"), answered("lines", {"8 lines": [1], "16 lines": [0]})])
    tables = shown(of_all(both))["tables"]
    assert [(table["folded"], table["title"]) for table in tables] == [(False, ""), (True, "mmlu: 13 levels")]
    text = page.render(**{**CONTENT, "levels": shown(of_all(both))})
    assert "<details><summary>mmlu: 13 levels</summary>" in text
    assert Resources(text).unbalanced == []


def test_the_picture_has_a_panel_a_task_of_long_texts_and_falls_as_accuracy_does():
    long = answered("key_value", LINES)
    places = answered("litm_cloze", {"5": [1, 0], "1": [1, 1], "3": [0, 0]}, choices=1)
    steps = answered("state", {"1 step": [1, 1], "2 steps": [1, 0]}, "emergent")
    picture = shown(of_all(pd.concat([long, places, steps])))["plot"]
    assert {"key_value", "litm_cloze", "pairs", "position", "8", "24", "72", "teacher", "RTN", "chance"} <= words_of(
        picture
    )
    assert not {"state", "8 pairs"} & words_of(picture)
    falling, turning = drawn_in(picture, plots.VARIANT_COLOURS["student"])[:2]  # behind them that of the legend
    assert falling == sorted({*falling}), "y goes downwards"
    assert turning[0] < turning[2] < turning[1]
    assert shown(of_all(steps))["plot"] == ""


def test_differences_have_a_row_a_pair_with_the_errors_of_the_scores():
    scores = {
        name: {
            "accuracy": 0.5,
            "difference.label_mapping": 0.25 - i / 100,
            "difference.label_mapping.stderr": 0.05,
            "difference.adv_sst2": -0.031,
            "difference.adv_sst2.stderr": math.nan,
        }
        for i, name in enumerate(NAMES)
    }
    del scores["rtn"]["difference.adv_sst2"]
    section = shown(of_all(answered("piqa", {"": [1, 0]}, "basic")), scores)
    assert section["differences"] == [
        ["", "teacher", "RTN", "PTQ", "student"],
        ["adv_sst2_clean less adv_sst2", "-3.1", "-", "-3.1", "-3.1"],
        ["label_mapping: 12 shots less 0 shots", "+25.0 ± 5.0", "+24.0 ± 5.0", "+23.0 ± 5.0", "+22.0 ± 5.0"],
    ]
    text = page.render(**{**CONTENT, "levels": section})
    assert "label_mapping: 12 shots less 0 shots" in text
    assert "<figure>" not in text[text.index("<h2>Accuracy by level</h2>") : text.index("<h2>Is it as good?</h2>")]


def test_the_section_stands_behind_the_tasks():
    section = shown(of_all(answered("lines", {"8 lines": [1, 0], "16 lines": [1, 1]})))
    text = page.render(**{**CONTENT, "levels": section})
    assert text.index("<h2>Accuracy by task</h2>") < text.index("<h2>Accuracy by level</h2>")
    assert "50.0 ± 50.0 <span" in text
    assert "<h2>Accuracy by level</h2>" not in page.render(**CONTENT)
    assert Resources(text).unbalanced == []
