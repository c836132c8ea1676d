"""The verdicts on each task, from small made answers of which it is known what they show."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.evaluation import items
from pipeline.report import margin
from pipeline.statistics import non_inferiority

N = 1000
Rights = dict[str, np.ndarray]


def first(count: int, of: int = N) -> np.ndarray:
    """Items of which the first so many are right."""
    return np.arange(of) < count


def answered(rights: Rights, choices: int = 4, likelihood: float = 1.0, **about: object) -> pd.DataFrame:
    """Item i's right choice is i modulo the choices; the chosen one has `likelihood` nats more than the others."""
    return items.answers(
        {
            "task": task,
            "item": i,
            "hash": f"{task}{i}",
            "prediction": (i if right else i + 1) % choices,
            "correct": right,
            "log_likelihoods": [-9.0 + likelihood * (c == (i if right else i + 1) % choices) for c in range(choices)],
            **about,
        }
        for task, column in rights.items()
        for i, right in enumerate(column)
    )


def of_variants(teacher: Rights, choices: int = 4, **variants: Rights) -> dict[str, pd.DataFrame]:
    """The answers of all; a variant that is not given answers as the teacher."""
    known = {"teacher": teacher, **{name: variants.get(name, teacher) for name in margin.VARIANTS}}
    return {name: answered(rights, choices) for name, rights in known.items()}


def one(teacher: np.ndarray, student: np.ndarray, share: float = 0.02, choices: int = 4) -> margin.Loss:
    """The loss of accuracy on a task."""
    losses = margin.losses(of_variants({"piqa": teacher}, choices, student={"piqa": student}), share)
    (loss,) = [loss for loss in losses if (loss.variant, loss.score) == ("student", margin.ACCURACY)]
    return loss


def test_the_four_verdicts_of_made_answers():
    teacher = first(700)
    same, worse, few = one(teacher, teacher), one(teacher, first(550)), one(first(45, 64), first(43, 64))
    guessing = one(first(255), first(200))
    kinds = [loss.verdict.verdict for loss in (same, worse, few, guessing)]
    assert kinds == ["within", "beyond", "not shown", "no signal"]
    assert (worse.gained, worse.lost, few.gained, few.lost) == (0, 150, 0, 2)
    assert worse.verdict.loss == pytest.approx(150 / 700)
    assert few.verdict.more is not None
    assert few.verdict.more > 64


def test_gained_and_lost_are_what_the_variant_or_the_teacher_alone_answers():
    loss = one(first(700), np.roll(first(700), 30))
    assert (loss.gained, loss.lost, loss.verdict.loss) == (30, 30, 0)


def test_the_margin_decides():
    teacher, student = first(700), first(670)
    assert one(teacher, student, 0.02).verdict.verdict == "beyond"
    assert one(teacher, student, 0.10).verdict.verdict == "within"


def test_chance_is_one_over_the_number_of_choices():
    """420 of 1000 are above a fourth, and below a half; by the binomial distribution."""
    assert stats.binom.sf(419, N, 0.25) < 0.05 < stats.binom.sf(419, N, 0.5)
    teacher = first(420)
    four, two = one(teacher, teacher, choices=4), one(teacher, teacher, choices=2)
    assert (four.chance, four.verdict.verdict) == (0.25, "within")
    assert (two.chance, two.verdict.verdict) == (0.5, "no signal")
    assert four.verdict.adjusted == 0


def test_items_of_several_numbers_of_choices_have_a_chance_each():
    tables = of_variants({"arc_easy": first(70, 100)})
    for table in tables.values():
        table.at[0, "log_likelihoods"] = [-1.0, -2.0, -3.0]
    assert margin.losses(tables, 0.02)[0].chance == pytest.approx((99 / 4 + 1 / 3) / 100)


def test_the_probability_of_the_right_answer_is_judged_too_where_it_is_known():
    teacher = first(70, 100)
    tables = of_variants({"piqa": teacher}, 2)
    sure = {name: np.linspace(0.3, 0.9, 100) - 0.01 * i for i, name in enumerate(tables)}
    for name, table in tables.items():
        table["right_probability"] = sure[name]
    losses = margin.losses(tables, 0.02)
    assert [(loss.score, loss.variant) for loss in losses] == [
        (score, variant) for score in (margin.ACCURACY, margin.PROBABILITY) for variant in ("rtn", "ptq", "student")
    ]
    expected = non_inferiority.relative(sure["teacher"], sure["student"], 0.02, 0.5)
    assert vars(losses[-1].verdict) == pytest.approx(vars(expected))
    assert losses[-1].verdict.loss != losses[2].verdict.loss
    tables["rtn"].loc[3, "right_probability"] = math.nan
    assert {loss.score for loss in margin.losses(tables, 0.02)} == {margin.ACCURACY}


def test_of_answers_whose_right_one_is_not_known_only_accuracy_is_judged():
    losses = margin.losses(of_variants({"arc_easy": first(70, 100)}), 0.02)
    assert {loss.score for loss in losses} == {margin.ACCURACY}


def test_an_answer_without_others_has_no_chance():
    (loss, *_) = margin.losses(of_variants({"lambada_openai": first(30, 100)}, 1), 0.02)
    assert (loss.chance, loss.verdict.adjusted) == (0, loss.verdict.loss)


def test_items_that_come_as_one_are_sampled_as_one():
    """Fours that are right and wrong together are a fourth of the items."""
    teacher, student = np.repeat(first(70, 100), 4), np.repeat(first(60, 100), 4)
    apart = of_variants({"ethics_cm": teacher}, 2, student={"ethics_cm": student})
    together = {name: table.assign(cluster=table["item"] // 4) for name, table in apart.items()}
    alone, clustered = (margin.losses(tables, 0.02)[-1].verdict for tables in (apart, together))
    assert (alone.items, alone.groups, clustered.groups) == (400, 400, 100)
    assert clustered.loss_error == pytest.approx(2 * alone.loss_error, rel=0.01)
    facts = margin.section(together, 0.02)["lines"][0]["facts"]
    assert facts.replace("\N{NO-BREAK SPACE}", " ").endswith("400 items in 100 clusters")


def test_tasks_stand_by_group_and_part_each_with_a_head():
    names = {"litm_cloze": ("long", "documents"), "piqa": ("basic", "reasoning"), "blimp": ("basic", "understanding")}
    names["arc_easy"] = names["piqa"]
    table = pd.concat(
        [answered({name: first(70, 100)}, group=group, part=part) for name, (group, part) in names.items()]
    )
    lines = margin.section(dict.fromkeys(("teacher", *margin.VARIANTS), table), 0.02)["lines"]
    assert [(line["head"], line["task"]) for line in lines] == [
        ("basic: reasoning", "arc_easy"),
        ("", "piqa"),
        ("basic: understanding", "blimp"),
        ("long: documents", "litm_cloze"),
    ]


def test_items_are_paired_by_place_and_content_not_by_row():
    teacher, student = {"piqa": first(70, 100)}, {"piqa": first(60, 100)}
    tables = of_variants(teacher, student=student)
    shuffled = tables | {"student": tables["student"].sample(frac=1, random_state=0)}
    assert margin.losses(shuffled, 0.02) == margin.losses(tables, 0.02)


def test_variants_that_answered_other_items_are_all_named():
    tables = of_variants({"piqa": first(70, 100)})
    tables["rtn"] = tables["rtn"].iloc[:-1]
    tables["student"] = tables["student"].assign(hash="another")
    with pytest.raises(ValueError, match=r"rtn did not answer.*; student did not answer.*evaluate@VARIANT"):
        margin.losses(tables, 0.02)


def test_items_without_the_likelihoods_of_choices_have_no_chance_level():
    tables = of_variants({"piqa": first(70, 100), "made": first(60, 100)})
    for name in ("teacher", "ptq"):
        rows = tables[name]["task"] == "made"
        tables[name].loc[rows, "log_likelihoods"] = pd.Series([[]] * len(rows))[rows]
    with pytest.raises(ValueError, match=r"teacher: 100 items of made keep .*; ptq: 100 items of made keep"):
        margin.losses(tables, 0.02)


def test_answers_that_are_written_are_judged_and_their_chance_is_none():
    tables = of_variants({"instructions": first(70, 100)}, student={"instructions": first(30, 100)})
    for table in tables.values():
        table["log_likelihoods"] = pd.Series([[]] * len(table))
    rtn, _, student = margin.losses(tables, 0.02)
    assert (rtn.chance, rtn.verdict.teacher, rtn.score) == (0.0, 0.7, margin.ACCURACY)
    assert rtn.verdict.adjusted == rtn.verdict.loss
    assert (student.gained, student.lost, student.verdict.verdict) == (0, 40, "beyond")


def test_the_section_has_a_line_a_task_and_score_and_a_cell_a_variant():
    teacher = {"arc_easy": first(700), "piqa": first(720)}
    rtn = {"arc_easy": first(500), "piqa": first(100)}
    made = margin.section(of_variants(teacher, 4, rtn=rtn, ptq={**teacher, "piqa": np.roll(first(720), 50)}), 0.02)
    assert made["title"] == "Is it as good? Within 2 %"
    assert made["told"] == [
        "RTN: beyond on 2 of 2 tasks",
        "PTQ: within on 1, not shown on 1 of 2 tasks",
        "student: within on 2 of 2 tasks",
    ]
    assert made["variants"] == ["RTN", "PTQ", "student"]
    assert [
        (line["task"], line["score"], line["facts"].replace("\N{NO-BREAK SPACE}", " ")) for line in made["lines"]
    ] == [
        ("arc_easy", "accuracy", "teacher 70.0 %, chance 25 %, 1000 items"),
        ("piqa", "accuracy", "teacher 72.0 %, chance 25 %, 1000 items"),
    ]
    beyond, not_shown, within = made["lines"][1]["cells"]
    assert beyond["verdict"] == "beyond"
    assert beyond["loss"].startswith("loss 86.1 ± ")
    assert beyond["loss"].endswith("(above chance 132 %)".replace(" ", "\N{NO-BREAK SPACE}"))
    assert (beyond["needs"], beyond["flips"]) == ("", "0 gained, 620 lost")
    assert (not_shown["mark"], not_shown["flips"]) == ("not-shown", "50 gained, 50 lost")
    assert not_shown["needs"].startswith("needs about ")
    assert not_shown["needs"].endswith("00 more items")
    assert (within["verdict"], within["needs"], within["flips"]) == ("within", "", "0 gained, 0 lost")
    assert "lose less than 2 % of" in made["note"]
    assert "probability" not in made["note"]


def test_a_teacher_without_a_right_answer_has_nothing_to_lose():
    made = margin.section(of_variants({"piqa": first(0, 64)}, 2, student={"piqa": first(5, 64)}), 0.05)
    cell = made["lines"][0]["cells"][-1]
    assert (cell["verdict"], cell["loss"], cell["flips"]) == ("no signal", "loss -", "5 gained, 0 lost")
    assert made["told"][0] == "RTN: no signal on 1 of 1 task"
    assert made["title"].endswith("Within 5 %")


@pytest.mark.parametrize(("count", "shown"), [(7, 7), (64, 64), (937, 940), (1729, 1800), (10581, 11000), (1000, 1000)])
def test_items_to_add_are_rounded_up_to_two_digits(count: int, shown: int):
    assert margin.rounded_up(count) == shown


def test_where_items_are_enough_and_nothing_is_shown_something_is_lost():
    """A loss of 1.8 %, as sure as 2,000 items make it: a student without loss would have passed."""
    teacher = first(1400, 2000)
    loss = one(teacher, first(1375, 2000))
    assert (loss.verdict.verdict, loss.verdict.more) == ("not shown", 0)
    made = margin.section(of_variants({"piqa": teacher}, student={"piqa": first(1375, 2000)}), 0.02)
    assert made["lines"][0]["cells"][-1]["needs"] == "items enough, so something is lost"


def test_where_no_task_is_asked_nothing_is_judged():
    none = {name: items.answers([]) for name in ("teacher", "rtn", "ptq", "student")}
    assert margin.losses(none, 0.02) == []
