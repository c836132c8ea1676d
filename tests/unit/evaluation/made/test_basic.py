"""The right continuation keeps to the rule, which the test looks for in its own way."""

import collections
import re

import pytest

from pipeline.evaluation.made.basic import EVENTS, ROLES, THINGS
from pipeline.evaluation.made.table import make
from pipeline.evaluation.made.words import MEN, WOMEN

ROWS = {name: make(name, 0, 600) for name in ("agreement", "word_order")}
PLURAL = {many for _, many in THINGS}


def of_rule(rule: str) -> list[tuple[str, str, str]]:
    """Context, right and wrong continuation of each row of a rule."""
    rows = [row for made in ROWS.values() for row in made if row["level"] == rule]
    assert len(rows) >= 150
    return [(row["context"], row["choices"][row["answer"]], row["choices"][1 - row["answer"]]) for row in rows]


def test_a_verb_agrees_with_the_first_noun():
    for context, right, wrong in of_rule("verb"):
        subject = context.split()[1]
        verbs = {"are", "were", "have"} if subject.endswith("s") else {"is", "was", "has"}
        assert right.split()[0] in verbs
        assert wrong.split()[0] not in verbs
        assert right.split()[1:] == wrong.split()[1:]
        between = [word for word in context.split()[2:] if word.rstrip("s") != word]
        assert bool(between) != subject.endswith("s") or between == ["across"]


def test_a_noun_agrees_with_its_determiner():
    for context, right, wrong in of_rule("determiner"):
        many = context.split()[2] in ("these", "those")
        assert (right.split()[0] in PLURAL) == many != (wrong.split()[0] in PLURAL)


def test_a_reflexive_is_of_who_comes_last():
    for context, right, wrong in of_rule("reflexive"):
        subject = context.split()[-2]
        wanted = "herself." if subject in WOMEN else "himself." if subject in MEN else "themselves."
        assert right == wanted != wrong


@pytest.mark.parametrize("rule", ["particle", "question", "role", "event"])
def test_both_orders_have_the_same_words(rule: str):
    for _, right, wrong in of_rule(rule):
        assert right != wrong
        assert sorted(re.findall(r"\w+", right)) == sorted(re.findall(r"\w+", wrong))


def test_the_right_order_is_that_of_english():
    for _, right, wrong in of_rule("particle"):
        assert re.match(r"\w+ (it|them) (up|down|away|off|back|out) ", right)
        assert re.match(r"\w+ (up|down|away|off|back|out) (it|them) ", wrong)
    for _, right, wrong in of_rule("question"):
        assert re.fullmatch(r"the \w+ (is|are)\.", right)
        assert re.fullmatch(r"(is|are) the \w+\.", wrong)
        assert (right.split()[1] in PLURAL) == right.endswith(" are.")


def test_the_right_order_is_that_of_the_world():
    for _, right, _ in of_rule("role"):
        assert any(right == f"{subject} was {done} by the {doer}." for done, subject, doer in ROLES)
    for _, right, _ in of_rule("event"):
        assert tuple(right.removesuffix(".").split(" and then ")) in EVENTS


@pytest.mark.parametrize("rule", ["verb", "determiner", "reflexive"])
def test_no_word_is_right_more_often_than_it_is_wrong(rule: str):
    right, wrong = (collections.Counter(pair[side].split()[0].strip(".") for pair in of_rule(rule)) for side in (1, 2))
    for word in right | wrong:
        total = right[word] + wrong[word]
        assert abs(right[word] - wrong[word]) <= 4 * total**0.5, word
