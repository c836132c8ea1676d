"""P-values of a family of tests, corrected for how many they are."""

from collections.abc import Sequence

from statsmodels.stats.multitest import multipletests


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values of a family that may be compared with the level one by one."""
    return [float(value) for value in multipletests(p, method="holm")[1]] if p else []
