"""Statistics of paired comparisons, against scipy's, by hand, and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.audit import verdicts
from pipeline.audit.verdicts import Scored
from pipeline.bench import items

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


def found(before: items.Items, after: items.Items, resamples: int = 10_000) -> dict[str, verdicts.Comparison]:
    one, other = Scored.of(before), Scored.of(after)
    return {each.measure: each for each in verdicts.judged(verdicts.compare(one, other, resamples))}


def test_two_versions_that_differ_by_chance_show_no_difference():
    random = np.random.default_rng(1)
    base = random.gamma(4, 0.05, 32)
    one, other = (made(base + random.normal(0, 0.01, 32), random.random(128) < 0.6) for _ in range(2))
    assert {each.verdict for each in found(one, other).values()} == {verdicts.SAME}


def test_what_is_worse_on_every_document_and_on_many_items_is_worse():
    random = np.random.default_rng(1)
    base, right = random.gamma(4, 0.05, 32), random.random(128) < 0.7
    hurt = right & (random.random(128) < 0.6)
    worse = found(made(base, right), made(base + 0.1 + random.normal(0, 0.01, 32), hurt))
    assert {worse[measure].verdict for measure in ("kl", "accuracy")} == {verdicts.WORSE}
    better = found(made(base + 0.1, hurt), made(base, right))
    assert {better[measure].verdict for measure in ("kl", "accuracy")} == {verdicts.BETTER}
    assert worse["kl"].difference == pytest.approx(0.1, abs=0.01)
    assert worse["kl"].low < worse["kl"].difference < worse["kl"].high


def test_a_version_is_no_different_from_itself():
    same = made(np.linspace(0.1, 0.3, 8), np.arange(16) % 2 == 0)
    assert {(each.difference, each.p, each.verdict) for each in found(same, same).values()} == {(0, 1, verdicts.SAME)}


def test_only_what_both_were_asked_is_compared():
    some = made(np.full(8, 0.2), np.ones(16))
    later = made(np.full(4, 0.2), np.ones(16), shift=3)
    each = found(some, later)
    assert (each["kl"].pairs, each["accuracy"].pairs, each["accuracy.piqa"].pairs) == (4, 10, 5)
    apart = made(np.full(8, 0.2), np.ones(16), shift=100)
    assert list(found(some, apart)) == ["kl"]


def test_pairs_are_found_in_whatever_order_the_rows_are():
    random = np.random.default_rng(1)
    before, after = (made(random.gamma(4, 0.05, 8), random.random(16) < 0.6) for _ in range(2))
    moved = items.Items(after.answers.sample(frac=1, random_state=1), after.documents.sample(frac=1, random_state=1))
    assert found(before, moved) == found(before, after)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemars_test_is_the_binomial_tail(gained: int, lost: int):
    n = gained + lost
    expected = min(1.0, 2 * stats.binom.cdf(min(gained, lost), n, 0.5)) if n else 1.0
    assert verdicts.mcnemar(gained, lost) == pytest.approx(expected)


def test_the_bootstraps_interval_is_scipys():
    random = np.random.default_rng(3)
    before, after = random.gamma(4, 1, 40), random.gamma(4, 1.2, 40)
    ours = verdicts.bootstrap("kl", before, after, 20_000)
    theirs = stats.bootstrap((after - before,), np.mean, n_resamples=20_000, method="percentile", rng=random)
    interval = theirs.confidence_interval
    width = interval.high - interval.low
    assert ours.low == pytest.approx(interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(interval.high, abs=0.03 * width)


def test_holms_correction_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 (raised to what stands before it), 0.5 x 1."""
    assert verdicts.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert verdicts.holm([0.9, 0.8]) == [1.0, 1.0]
    assert verdicts.holm([]) == []


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_a_correction_lies_between_the_p_value_and_bonferronis(p: list[float]):
    for before, after in zip(p, verdicts.holm(p), strict=True):
        assert before <= after <= min(1.0, before * len(p)) or after == pytest.approx(before)


@pytest.mark.parametrize("comparisons", [1, 10, 500, 5000])
def test_enough_resamples_are_taken_for_a_clear_difference_to_pass_the_correction(comparisons: int):
    resamples = verdicts.resamples_for(comparisons)
    assert 2 / (resamples + 1) * comparisons < verdicts.LEVEL


def test_among_versions_that_do_not_differ_few_audits_show_a_difference():
    random = np.random.default_rng(7)
    wrong = 0
    for _ in range(200):
        base = random.gamma(4, 0.05, 32)
        one, other = (made(base + random.normal(0, 0.01, 32), random.random(64) < 0.6) for _ in range(2))
        wrong += any(each.verdict != verdicts.SAME for each in found(one, other, 2000).values())
    assert wrong <= 20, "5 % of 200, and three standard errors"


def test_few_documents_are_not_taken_for_more_than_they_say():
    """Six documents, one comparison an audit: where nothing differs, one in twenty shows a difference; by the bootstrap
    alone, one in seven would."""
    random = np.random.default_rng(5)
    found = [verdicts.bootstrap("kl", np.zeros(6), random.normal(0, 1, 6), 2000) for _ in range(400)]
    assert sum(each.p < 0.05 for each in found) <= 33, "5 % of 400, and three standard errors"
    assert sum(each.low > 0 or each.high < 0 for each in found) > 33


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
