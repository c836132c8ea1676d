"""Statistics of paired comparisons, against scipy's, by hand, and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.audit import numbers, verdicts
from pipeline.audit.verdicts import Scored
from pipeline.evaluation import items
from pipeline.statistics import paired

TASKS = ("arc_easy", "piqa")


def made(kl: np.ndarray, correct: np.ndarray, shift: int = 0) -> items.Items:
    """A version with a KL a document, and answers of two tasks; items from `shift` on."""
    documents = [
        {"measure": "kl", "document": i, "hash": f"d{i}", "tokens": 9, "value": value} for i, value in enumerate(kl)
    ]
    half = len(correct) // 2
    answers = [
        {
            "task": TASKS[i // half],
            "item": i % half + shift,
            "hash": f"i{i % half + shift}",
            "prediction": int(right),
            "correct": bool(right),
            "log_likelihoods": [-1.0, -2.0],
        }
        for i, right in enumerate(correct)
    ]
    return items.Items(items.answers(answers), items.documents(documents))


def judged(before: items.Items, after: items.Items, resamples: int = 10_000) -> dict[str, verdicts.Comparison]:
    one, other = Scored.of(before), Scored.of(after)
    return {comparison.measure: comparison for comparison in verdicts.judged(verdicts.compare(one, other, resamples))}


def test_two_versions_that_differ_by_chance_show_no_difference():
    random = np.random.default_rng(1)
    base = random.gamma(4, 0.05, 32)
    one, other = (made(base + random.normal(0, 0.01, 32), random.random(128) < 0.6) for _ in range(2))
    assert {comparison.verdict for comparison in judged(one, other).values()} == {verdicts.SAME}


def test_what_is_worse_on_every_document_and_on_many_items_is_worse():
    random = np.random.default_rng(1)
    base, right = random.gamma(4, 0.05, 32), random.random(128) < 0.7
    hurt = right & (random.random(128) < 0.6)
    worse = judged(made(base, right), made(base + 0.1 + random.normal(0, 0.01, 32), hurt))
    assert {worse[measure].verdict for measure in ("kl", "accuracy")} == {verdicts.WORSE}
    better = judged(made(base + 0.1, hurt), made(base, right))
    assert {better[measure].verdict for measure in ("kl", "accuracy")} == {verdicts.BETTER}
    assert worse["kl"].difference == pytest.approx(0.1, abs=0.01)
    assert worse["kl"].low < worse["kl"].difference < worse["kl"].high


def test_a_version_is_no_different_from_itself():
    same = made(np.linspace(0.1, 0.3, 8), np.arange(16) % 2 == 0)
    outcomes = {(comparison.difference, comparison.p, comparison.verdict) for comparison in judged(same, same).values()}
    assert outcomes == {(0, 1, verdicts.SAME)}


def test_only_what_both_were_asked_is_compared():
    some = made(np.full(8, 0.2), np.ones(16))
    later = made(np.full(4, 0.2), np.ones(16), shift=3)
    comparisons = judged(some, later)
    assert (comparisons["kl"].pairs, comparisons["accuracy"].pairs, comparisons["accuracy.piqa"].pairs) == (4, 10, 5)
    apart = made(np.full(8, 0.2), np.ones(16), shift=100)
    assert list(judged(some, apart)) == ["kl"]


def test_pairs_are_found_in_whatever_order_the_rows_are():
    random = np.random.default_rng(1)
    before, after = (made(random.gamma(4, 0.05, 8), random.random(16) < 0.6) for _ in range(2))
    moved = items.Items(after.answers.sample(frac=1, random_state=1), after.documents.sample(frac=1, random_state=1))
    assert judged(before, moved) == judged(before, after)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemars_test_is_the_binomial_tail(gained: int, lost: int):
    n = gained + lost
    expected = min(1.0, 2 * stats.binom.cdf(min(gained, lost), n, 0.5)) if n else 1.0
    assert paired.sign_flips([np.array([1.0] * gained + [-1.0] * lost + [0.0])]) == pytest.approx(expected)


def test_the_bootstraps_interval_is_scipys():
    random = np.random.default_rng(3)
    before, after = random.gamma(4, 1, 40), random.gamma(4, 1.2, 40)
    ours = verdicts.bootstrap("kl", before, after, 20_000)
    theirs = stats.bootstrap((after - before,), np.mean, n_resamples=20_000, method="percentile", rng=random)
    interval = theirs.confidence_interval
    width = interval.high - interval.low
    assert ours.low == pytest.approx(interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(interval.high, abs=0.03 * width)


@pytest.mark.parametrize("comparisons", [1, 10, 500, 5000])
def test_enough_resamples_are_taken_for_a_clear_difference_to_pass_the_correction(comparisons: int):
    resamples = verdicts.resamples_for(comparisons)
    assert 2 / (resamples + 1) * comparisons < verdicts.LEVEL


@pytest.mark.usefixtures("garbage_set_aside")
def test_among_versions_that_do_not_differ_few_audits_show_a_difference():
    random = np.random.default_rng(7)
    wrong = 0
    for _ in range(200):
        base = random.gamma(4, 0.05, 32)
        one, other = (made(base + random.normal(0, 0.01, 32), random.random(64) < 0.6) for _ in range(2))
        wrong += any(comparison.verdict != verdicts.SAME for comparison in judged(one, other, 2000).values())
    assert wrong <= 20, "5 % of 200, and three standard errors"


def test_few_documents_are_not_taken_for_more_than_they_say():
    """Six documents, one comparison an audit: where nothing differs, one in twenty shows a difference; by the bootstrap
    alone, one in seven would."""
    random = np.random.default_rng(5)
    comparisons = [verdicts.bootstrap("kl", np.zeros(6), random.normal(0, 1, 6), 2000) for _ in range(400)]
    assert sum(comparison.p < 0.05 for comparison in comparisons) <= 33, "5 % of 400, and three standard errors"
    assert sum(comparison.low > 0 or comparison.high < 0 for comparison in comparisons) > 33


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=9))
def test_no_verdict_is_more_sure_than_a_t_test(apart: list[float]):
    values = np.array(apart)
    if values.std() < 1e-6:
        values[0] += 1.0
    expected = stats.ttest_1samp(values, 0.0).pvalue
    assert verdicts.bootstrap("kl", np.zeros(len(values)), values, 100).p >= expected * (1 - 1e-9)


def test_one_document_says_nothing_and_equal_differences_leave_no_doubt():
    assert verdicts.bootstrap("kl", np.zeros(1), np.ones(1), 100).p == 1.0
    assert verdicts.bootstrap("kl", np.zeros(8), np.ones(8), 100).p < 1e-3


SIZES = {
    "piqa": 1838,
    "hellaswag": 10042,
    "winogrande": 1267,
    "openbookqa": 500,
    "arc_easy": 2376,
    "arc_challenge": 1172,
}


def answered(shares: dict[str, float], sizes: dict[str, int]) -> items.Items:
    """The first items of each task right, up to its share."""
    rows = [
        {
            "task": task,
            "item": i,
            "hash": f"{task}{i}",
            "prediction": 0,
            "correct": i < round(shares[task] * size),
            "log_likelihoods": [],
        }
        for task, size in sizes.items()
        for i in range(size)
    ]
    return items.Items(items.answers(rows), items.documents([]))


def test_a_mean_over_tasks_that_fell_is_not_called_better_for_its_largest_task():
    """At the public sets' sizes: 0.425 to 0.397 by the page, while 500 more items are answered than before."""
    before = answered({**dict.fromkeys(SIZES, 0.44), "hellaswag": 0.35}, SIZES)
    after = answered({**dict.fromkeys(SIZES, 0.39), "hellaswag": 0.4325}, SIZES)
    assert after.answers["correct"].sum() > before.answers["correct"].sum()
    shown = [numbers.of_items(version)["accuracy"] for version in (before, after)]
    assert shown == pytest.approx([0.425, 0.397], abs=0.001)
    accuracy = judged(before, after)["accuracy"]
    assert [accuracy.before, accuracy.after] == pytest.approx(shown)
    assert accuracy.verdict == verdicts.WORSE
    assert accuracy.low < accuracy.difference < accuracy.high < 0


@pytest.mark.parametrize("seed", range(3))
def test_every_verdict_is_about_the_number_that_the_scores_show(seed: int):
    """All measures, over tasks and documents of many sizes: before and after are the scores', and so is the sign."""
    random = np.random.default_rng(seed)
    sizes = {"arc_easy": 20, "openbookqa": 7, "piqa": 300}

    def scored(shift: float) -> items.Items:
        documents = [
            {"measure": measure, "document": i, "hash": f"{i}", "tokens": 1 + 40 * i, "value": value}
            for measure, level in (("log_perplexity", 3.0), ("kl", 0.4), ("top1", 0.5))
            for i, value in enumerate(random.normal(level + shift, 0.01, 12))
        ]
        rows = answered(dict.fromkeys(sizes, 0), sizes).answers
        rows["correct"] = random.random(len(rows)) < 0.5 + shift
        return items.Items(rows, items.documents(documents))

    before, after = scored(-0.05), scored(0.05)
    shown, then = numbers.of_items(before), numbers.of_items(after)
    comparisons = judged(before, after)
    assert {*comparisons} == {*verdicts.HIGHER_IS_BETTER} | {f"accuracy.{task}" for task in sizes}
    for name, comparison in comparisons.items():
        assert comparison.whole
        assert (comparison.before, comparison.after) == pytest.approx((shown[name], then[name])), name
        rose = then[name] > shown[name]
        if name == "log_perplexity":
            assert rose == (then["perplexity"] > shown["perplexity"])
        better = rose == verdicts.HIGHER_IS_BETTER[name.partition(".")[0]]
        allowed = {verdicts.SAME, verdicts.BETTER if better else verdicts.WORSE}
        assert comparison.verdict in allowed, name
    assert comparisons["kl"].verdict == verdicts.WORSE
    assert comparisons["top1"].verdict == verdicts.BETTER


def test_a_verdict_on_a_part_of_the_items_is_not_one_about_the_scores():
    whole, part = made(np.full(8, 0.2), np.ones(16)), made(np.full(4, 0.2), np.ones(16), shift=3)
    comparisons = judged(whole, part)
    assert [(comparisons[name].pairs, comparisons[name].of) for name in ("kl", "accuracy", "accuracy.piqa")] == [
        (4, 8),
        (10, 16),
        (5, 8),
    ]
    assert not comparisons["accuracy"].whole
    alone = items.Items(whole.answers[whole.answers["task"] == "piqa"], whole.documents)
    assert (judged(whole, alone)["accuracy"].pairs, judged(whole, alone)["accuracy"].of) == (8, 16)
    assert judged(whole, alone)["accuracy.piqa"].whole
