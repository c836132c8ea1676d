"""What an audit finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: a path or a stage, and what is wrong with it.

    checked: whether it was; if not, the problem is why it could not be.
    """

    what: str
    problem: str
    checked: bool = True
