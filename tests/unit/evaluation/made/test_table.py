"""What holds of every made task: seeds, balance, nothing twice, nothing that length gives away."""

import collections
import math

import pytest

from pipeline.evaluation.made.table import MADE, PLENTY, make

SHUFFLED = sorted(MADE)
FINITE = [name for name, made in MADE.items() if made.most < PLENTY]


@pytest.mark.parametrize("name", MADE)
def test_a_seed_makes_the_same_rows_whatever_else_is_made(name: str):
    rows = make(name, 3, 60)
    for other in SHUFFLED[::-1]:
        make(other, 3, 5)
    assert make(name, 3, 60) == rows
    assert make(name, 4, 60) != rows


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("fewer", [1, 7, 50])
def test_fewer_rows_are_the_first_of_more(name: str, fewer: int):
    assert make(name, 0, fewer) == make(name, 0, 60)[:fewer]


@pytest.mark.parametrize("name", MADE)
def test_a_row_is_whole(name: str):
    rows = make(name, 0, 200)
    assert len(rows) == 200
    for row in rows:
        assert row["context"] == row["context"].strip()
        assert len({choice.strip() for choice in row["choices"]}) == len(row["choices"]) > 1
        assert all(choice == choice.strip() != "" for choice in row["choices"])
        assert 0 <= row["answer"] < len(row["choices"])
    clusters = [row["cluster"] for row in rows]
    assert [*dict.fromkeys(clusters)] == [*range(max(clusters) + 1)]


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("items", [37, 240])
def test_every_place_is_the_right_one_equally_often_at_each_level(name: str, items: int):
    levels = collections.defaultdict(list)
    for row in make(name, 1, items):
        levels[row["level"]].append((row["answer"], len(row["choices"])))
    for answers in levels.values():
        ((choices),) = {count for _, count in answers}
        counts = collections.Counter(answer for answer, _ in answers)
        assert all(abs(counts[place] - len(answers) / choices) <= 1 for place in range(choices))


@pytest.mark.parametrize("name", MADE)
def test_nothing_comes_twice(name: str):
    rows = make(name, 0, min(1500, MADE[name].most))
    asked = {(row["context"], row["choices"][row["answer"]], *sorted(row["choices"])) for row in rows}
    assert len(asked) == len(rows)


@pytest.mark.parametrize("name", FINITE)
def test_there_are_as_many_as_are_said_and_no_more(name: str):
    assert len(make(name, 5, MADE[name].most)) == MADE[name].most
    with pytest.raises(ValueError, match=rf"'{name}'.* it has 1 to {MADE[name].most}"):
        make(name, 5, MADE[name].most + 1)


@pytest.mark.parametrize("name", MADE)
def test_the_compared_levels_are_paired(name: str):
    made = MADE[name]
    clusters = collections.defaultdict(list)
    for row in make(name, 0, 200):
        clusters[row["cluster"]].append((row["level"], row["choices"], row["answer"]))
    if made.compares:
        for members in clusters.values():
            assert sorted(level for level, _, _ in members) == sorted(made.compares)
            assert len({(*choices, answer) for _, choices, answer in members}) == 1


@pytest.mark.parametrize("longest", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_no_answer_is_given_away_by_its_length(name: str, longest: bool):
    """The right choice is the longest (shortest) no more often than by chance, within three standard deviations."""
    sign = 1 if longest else -1
    right, chances = 0, []
    for row in make(name, 0, 600):
        lengths = [sign * len(choice) for choice in row["choices"]]
        right += lengths[row["answer"]] == max(lengths)
        chances.append(lengths.count(max(lengths)) / len(lengths))
    assert right <= sum(chances) + 3 * math.sqrt(sum(p * (1 - p) for p in chances))


@pytest.mark.parametrize("name", MADE)
def test_the_default_number_is_whole_clusters_of_every_level(name: str):
    """So that each level has as many rows as any other, and no cluster is cut."""
    rows = make(name, 0, MADE[name].items)
    counts = collections.Counter(row["level"] for row in rows)
    assert len({*counts.values()}) == 1
    if name not in ("ethics", "word_order"):  # whose clusters are drawn
        assert len({*collections.Counter(row["cluster"] for row in rows).values()}) == 1


@pytest.mark.parametrize("name", ["ethics", "word_order"])
def test_rows_with_the_same_continuations_are_one_cluster_and_no_others(name: str):
    continuations = collections.defaultdict(set)
    for row in make(name, 0, 400):
        continuations[row["cluster"]].add(frozenset(row["choices"]))
    assert {len(of_cluster) for of_cluster in continuations.values()} == {1}
    assert len({*map(frozenset, continuations.values())}) == len(continuations)


def test_a_wrong_name_or_number_is_answered_with_the_way_out():
    with pytest.raises(ValueError, match=r"unknown made task 'line'; did you mean 'lines'\?"):
        make("line", 0, 10)
    for items in (0, -1):
        with pytest.raises(ValueError, match=r"'lines': .*it has 1 to"):
            make("lines", 0, items)
