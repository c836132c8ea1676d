"""Sums of outer products X^T X over rows, of which only the upper blocks are worked out, since they are symmetric."""

from torch import Tensor

BLOCKS = 4  # 5/8 of the products; more of them save little, and are too narrow to be fast


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add the upper blocks of rows^T rows to `total` [width, width] in place; `mirror` makes it whole in the end.

    Args:
        total: float32. rows: [n, width], of float32 or narrower.
    """
    width = rows.shape[1]
    size = -(-width // BLOCKS)
    for start in range(0, width, size):
        left, right = rows[:, start : start + size].T, rows[:, start:]
        if rows.dtype == total.dtype:
            total[start : start + size, start:].addmm_(left, right)
        else:
            total[start : start + size, start:] += left @ right


def mirror(total: Tensor) -> Tensor:
    """The symmetric matrix [width, width] whose upper triangle a total holds."""
    upper = total.triu()
    return upper + upper.triu(1).T
