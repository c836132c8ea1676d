"""Means of items and of groups, against scipy's t-test and statsmodels' clustered errors."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from pipeline.statistics import clustered


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.2])
def test_items_that_stand_alone_give_scipys_t_test(shift: float):
    values = np.random.default_rng(0).normal(shift, 1, 40)
    mean = clustered.mean(values, np.arange(40))
    assert mean.error == pytest.approx(stats.sem(values))
    assert mean.above() == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue)
    assert mean.below() == pytest.approx(stats.ttest_1samp(values, 0, alternative="less").pvalue)


def test_items_in_groups_give_statsmodels_clustered_errors():
    """Of a regression on a constant; groups of other sizes, in any order."""
    random = np.random.default_rng(1)
    clusters = np.append(random.integers(0, 25, 200), np.arange(25))
    values = random.normal(0, 1, 25)[clusters] + random.normal(0.3, 1, 225)
    theirs = sm.OLS(values, np.ones(225)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    mean = clustered.mean(values, clusters)
    assert mean.groups == 25
    assert mean.error == pytest.approx(float(theirs.bse[0]))
    assert 2 * mean.above() == pytest.approx(float(theirs.pvalues[0]))
    assert mean.error > 1.5 * stats.sem(values)


def test_equal_values_leave_no_doubt():
    for value, above, below in ((0.1, 0.0, 1.0), (-0.1, 1.0, 0.0), (0.0, 1.0, 1.0)):
        mean = clustered.mean(np.full(7, value), np.arange(7))
        assert (mean.value, mean.error) == (pytest.approx(value), 0)
        assert (mean.above(), mean.below()) == (above, below)


def test_what_float_arithmetic_leaves_of_equal_values_is_no_difference():
    teacher = np.random.default_rng(2).random(50)
    apart = 0.98 * teacher - teacher + 0.02 * teacher
    assert apart.any()
    mean = clustered.mean(apart, np.arange(50))
    assert (mean.above(), mean.below()) == (1, 1)
