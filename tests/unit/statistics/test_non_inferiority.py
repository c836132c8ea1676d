"""Verdicts on paired items, against scipy and statsmodels, and where the scores say little."""

import itertools
import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from pipeline.statistics import corrections, paired_proportions
from pipeline.statistics.non_inferiority import BEYOND, NO_SIGNAL, NOT_SHOWN, WITHIN, absolute, relative
from pipeline.statistics.paired_proportions import Pairs


def answers(both: int, teacher_only: int, student_only: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, teacher_only, student_only, neither]
    return np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)


@pytest.mark.parametrize(("lost", "verdict"), [(0.0, WITHIN), (0.02, NOT_SHOWN), (0.1, BEYOND)])
def test_verdicts_on_probabilities_are_scipys_t_tests(lost: float, verdict: str):
    random = np.random.default_rng(0)
    teacher = random.uniform(0.3, 1, 400)
    student = (1 - lost) * teacher + random.normal(0, 0.05, 400)
    for judged, tested in (
        (relative(teacher, student, 0.02, 0.25), student - 0.98 * teacher),
        (absolute(teacher, student, 0.013, 0.25), student - teacher + 0.013),
    ):
        assert judged.verdict == verdict
        assert judged.p_within == pytest.approx(stats.ttest_1samp(tested, 0, alternative="greater").pvalue)
        assert judged.p_beyond == pytest.approx(stats.ttest_1samp(tested, 0, alternative="less").pvalue)
    assert judged.p_signal == pytest.approx(stats.ttest_1samp(teacher, 0.25, alternative="greater").pvalue)
    assert judged.loss == pytest.approx(teacher.mean() - student.mean())
    assert judged.loss_error == pytest.approx(stats.sem(teacher - student))


def test_the_p_value_of_groups_is_statsmodels():
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(60), 5)
    teacher = random.uniform(0.3, 1, 300)
    student = 0.99 * teacher + random.normal(0, 0.05, 60)[labels]
    theirs = sm.OLS(student - 0.98 * teacher, np.ones(300)).fit(
        cov_type="cluster", cov_kwds={"groups": labels}, use_t=True
    )
    grouped = relative(teacher, student, clusters=[f"text {label}" for label in labels])
    assert (grouped.items, grouped.groups) == (300, 60)
    assert min(grouped.p_within, grouped.p_beyond) == pytest.approx(float(theirs.pvalues[0]) / 2)
    alone = relative(teacher, student)
    assert grouped.loss == alone.loss
    assert grouped.loss_error > 1.5 * alone.loss_error


def test_right_and_wrong_answers_must_pass_the_score_test_too():
    """With five flips in 150 the t-test of the margin is surer than Tango's; with 640 in 10,000 they agree."""
    teacher, student = answers(100, 2, 3, 45)
    judged = absolute(teacher, student, 0.03)
    by_t = stats.ttest_1samp(student - teacher + 0.03, 0, alternative="greater").pvalue
    low, _ = paired_proportions.interval_of_difference(Pairs(100, 2, 3, 45), 1 - 2 * judged.p_within)
    assert low == pytest.approx(-0.03)
    assert judged.p_within > 1.5 * by_t
    teacher, student = answers(8000, 390, 250, 1360)
    by_t = stats.ttest_1samp(student - 0.98 * teacher, 0, alternative="greater").pvalue
    assert relative(teacher, student).p_within == pytest.approx(by_t, rel=0.05)


@pytest.mark.parametrize("counts", [(100, 8, 0, 42), (100, 0, 1, 49), (60, 20, 4, 16), (1, 7, 0, 0)])
def test_of_the_two_tests_the_less_sure_one_counts(counts: tuple[int, int, int, int]):
    teacher, student = answers(*counts)
    tested, judged = student - teacher + 0.03, absolute(teacher, student, 0.03)
    variance = paired_proportions.variance_at_difference(Pairs(*counts), -0.03)
    score = tested.mean() / math.sqrt(variance / len(tested))
    by_t = [stats.ttest_1samp(tested, 0, alternative=tail).pvalue for tail in ("greater", "less")]
    assert judged.p_within == pytest.approx(max(by_t[0], stats.norm.sf(score)))
    assert judged.p_beyond == pytest.approx(max(by_t[1], stats.norm.cdf(score)))


def test_both_lose_what_they_have_above_chance():
    """80 of 100 to 74, of which a quarter is chance: 7.5 % of the accuracy, 11 % of what is above chance."""
    judged = relative(*answers(70, 10, 4, 16), chance=0.25)
    assert (judged.teacher, judged.student) == (0.8, 0.74)
    assert judged.loss == pytest.approx(0.075)
    assert judged.adjusted == pytest.approx(0.06 / 0.55)
    random = np.random.default_rng(0)
    teacher, student = answers(70, 10, 4, 16)
    picks = random.integers(0, 100, (4000, 100))
    drawn_teacher, drawn_student = teacher[picks].mean(1), student[picks].mean(1)
    assert judged.loss_error == pytest.approx(np.std(1 - drawn_student / drawn_teacher), rel=0.06)
    drawn = 1 - (drawn_student - 0.25) / (drawn_teacher - 0.25)
    assert judged.adjusted_error == pytest.approx(np.std(drawn), rel=0.06)


def test_a_teacher_at_chance_gives_no_signal():
    random = np.random.default_rng(3)
    teacher = random.random(400) < 0.26
    judged = relative(teacher, teacher, chance=0.25)
    assert judged.verdict == NO_SIGNAL
    assert judged.p_signal >= stats.binomtest(int(teacher.sum()), 400, 0.25, alternative="greater").pvalue
    assert (judged.needed, judged.more) == (None, None)
    assert relative(teacher, teacher, chance=0.15).verdict == NOT_SHOWN


def test_the_chance_of_items_with_other_numbers_of_choices_is_counted():
    chance, right = np.array([0.5, 0.25, 0.2, 0.25, 0.5]), np.ones(5)
    outcomes = itertools.product((0, 1), repeat=5)
    counted = sum(
        math.prod(c if hit else 1 - c for c, hit in zip(chance, hits, strict=True))
        for hits in outcomes
        if sum(hits) >= 5
    )
    assert relative(right, right, chance=chance).p_signal == pytest.approx(counted)


def test_all_right_says_nothing_of_few_items():
    """Where none flips, 2 % may be lost unseen in 132 items, but not in 133: 1.6449^2 x 0.98 / 0.02."""
    few = relative(np.ones(20), np.ones(20))
    assert (few.verdict, few.needed, few.more) == (NOT_SHOWN, 133, 113)
    assert relative(np.ones(132), np.ones(132)).verdict == NOT_SHOWN
    assert relative(np.ones(133), np.ones(133)).verdict == WITHIN


def test_all_wrong():
    right, wrong = np.ones(20), np.zeros(20)
    for student in (right, wrong):
        nothing = relative(wrong, student)
        assert (nothing.verdict, nothing.p_signal) == (NO_SIGNAL, 1)
        assert math.isnan(nothing.loss)
        assert math.isnan(nothing.adjusted)
    broken = relative(right, wrong, chance=0.25)
    assert (broken.verdict, broken.loss) == (BEYOND, 1)
    assert absolute(right, wrong, 0.02).verdict == BEYOND


def test_scores_without_variance():
    """Probabilities that all lose the same leave no doubt; those that lose exactly the margin show nothing."""
    teacher = np.full(10, 0.7)
    assert relative(teacher, teacher).verdict == WITHIN
    assert relative(teacher, 0.9 * teacher).verdict == BEYOND
    exactly = relative(teacher, 0.98 * teacher)
    assert (exactly.verdict, exactly.p_within, exactly.p_beyond, exactly.needed) == (NOT_SHOWN, 1, 1, 2)


def test_enough_items_and_not_shown_asks_for_no_more():
    """Some loss is likely then."""
    judged = relative(*answers(6400, 145, 30, 3425))
    assert judged.verdict == NOT_SHOWN
    assert judged.needed is not None
    assert judged.needed < judged.items
    assert judged.more == 0


def test_a_student_that_is_better_is_within():
    judged = relative(*answers(600, 10, 60, 330))
    assert judged.verdict == WITHIN
    assert judged.loss < 0


def test_groups_that_flip_together_need_as_many_groups():
    """Each answer four times over: four times the items, and the same verdict but for one group more of caution."""
    teacher, student = answers(300, 12, 12, 176)
    alone = relative(teacher, student)
    fourfold = relative(np.repeat(teacher, 4), np.repeat(student, 4), clusters=np.repeat(np.arange(500), 4))
    assert fourfold.p_within == pytest.approx(alone.p_within, rel=1e-6)
    assert alone.needed is not None
    assert fourfold.needed == pytest.approx(4 * alone.needed, abs=4)


def test_input_that_says_nothing_is_refused():
    for teacher, student, clusters in (
        ([1.0], [1.0], None),
        ([1.0, 0.0], [1.0], None),
        ([1.0, 0.0], [1.0, math.nan], None),
        ([1.0, 0.0], [1.0, 1.0], ["a", "a"]),
    ):
        for judge in (relative, absolute):
            with pytest.raises(ValueError, match=r"items|finite|one holds all"):
                judge(teacher, student, 0.02, clusters=clusters)
    with pytest.raises(ValueError, match=r"margin: 2 is not between 0 and 1; 0.02 is 2 %"):
        relative([1, 0], [1, 0], 2)


@pytest.mark.usefixtures("garbage_set_aside")
def test_a_claim_for_each_of_many_sub_tasks_takes_holms_correction():
    """Ten sub-tasks that lose exactly the margin: in 5 % of the families at most, one is called within."""
    random, families = np.random.default_rng(4), 300
    wrong = 0
    for _ in range(families):
        teachers = random.random((10, 60))
        p = [relative(teacher, 0.98 * teacher + random.normal(0, 0.1, 60)).p_within for teacher in teachers]
        wrong += min(corrections.holm(p)) < 0.05
    assert 0 < wrong / families <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)
