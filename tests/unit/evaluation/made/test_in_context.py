"""The examples say which label is right: that of the kind that the word is of."""

import collections

from pipeline.evaluation.made.in_context import KINDS
from pipeline.evaluation.made.table import make


def kind(word: str) -> str:
    (only,) = [name for name, words in KINDS.items() if word in words.split()]
    return only


def test_the_examples_of_its_kind_have_the_right_label():
    for row in make("label_mapping", 0, 300):
        *examples, question = row["context"].split("\n")
        word = question.removesuffix(" ->")
        assert len(examples) == int(row["level"].split()[0])
        labels = collections.defaultdict(set)
        for example in examples:
            known, label = example.split(" -> ")
            assert known != word
            labels[kind(known)].add(label)
        if examples:
            assert labels[kind(word)] == {row["choices"][row["answer"]]}
            assert set.union(*labels.values()) == {*row["choices"]}
            counts = collections.Counter(example.split(" -> ")[1] for example in examples)
            assert {*counts.values()} == {4}


def test_the_label_of_the_latest_example_is_right_by_chance():
    rows = [row for row in make("label_mapping", 0, 300) if row["level"] == "12 shots"]
    latest = [row["context"].split("\n")[-2].split(" -> ")[1] == row["choices"][row["answer"]] for row in rows]
    assert abs(sum(latest) - len(rows) / 3) <= 1
