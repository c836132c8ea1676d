"""Versions set side by side: what changed from each to the next, and what the differences of their scores show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.audit import changes, verdicts
from pipeline.audit.cache import Cache
from pipeline.audit.changes import Change
from pipeline.audit.verdicts import Comparison, Scored
from pipeline.audit.versions import EVALUATE, Version

TEACHER = "teacher"
SAME_BYTES = "the same answers, byte for byte"
NO_ITEMS = "one of them kept no items, or they are not in the cache (`dvc pull`)"
NOTHING_SHARED = "they were not asked the same"
STALE = "its scores are older than what they should be made from"
AGAINST_STALE = "what it is set against has scores older than what they should be made from"


@dataclass(frozen=True)
class Pair:
    """A variant of a version, and what it is compared with.

    Attributes:
        version, variant: what is judged. against: another version, of which the same variant, or a variant of this one.
        within: whether `against` is a variant. comparisons: empty where `note` says why.
    """

    version: str
    variant: str
    against: str
    within: bool
    comparisons: tuple[Comparison, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """A version in an audit: what it is compared with, and what came out."""

    version: Version
    previous: Version | None
    changes: tuple[Change, ...]
    pairs: tuple[Pair, ...]

    def verdict(self, variant: str, measure: str) -> Comparison | None:
        """The comparison with the version before."""
        pairs = (pair for pair in self.pairs if pair.variant == variant and not pair.within)
        comparisons = (comparison for pair in pairs for comparison in pair.comparisons)
        return next((comparison for comparison in comparisons if comparison.measure == measure), None)


def audit(
    versions: Sequence[Version], before: Sequence[Version | None], cache: Cache, advance: Callable[[], object]
) -> list[Entry]:
    """Each version against another, and its variants against its own teacher.

    Args:
        before: what each version is set against. advance: called once a version.
    """
    wanted = [_wanted(version, previous) for version, previous in zip(versions, before, strict=True)]
    hashes = dict.fromkeys(md5 for group in wanted for _, *pair in group for md5 in pair if md5)
    tables = {md5: Scored.of(items) for md5 in hashes if (items := cache.items(md5))}
    measures = sum(_count(tables, one, other) for group in wanted for pair, one, other in group if not pair.note)
    resamples = verdicts.resamples_for(measures)
    groups = []
    for group in wanted:
        groups.append([_compared(pair, tables, one, other, resamples) for pair, one, other in group])
        advance()
    comparisons = [comparison for group in groups for pair in group for comparison in pair.comparisons]
    judged = iter(verdicts.judged(comparisons))
    entries = []
    for version, previous, compared in zip(versions, before, groups, strict=True):
        pairs = tuple(replace(pair, comparisons=tuple(next(judged) for _ in pair.comparisons)) for pair in compared)
        differences = changes.changes(previous, version) if previous and previous is not version else []
        entries.append(Entry(version, previous, tuple(differences), pairs))
    return entries


Wanted = tuple[Pair, str | None, str | None]  # with the md5 of the items before and after


def _wanted(version: Version, previous: Version | None) -> list[Wanted]:
    wanted: list[Wanted] = []
    for variant in version.variants:
        mine = version.items(variant)
        if previous not in (None, version) and variant in previous.variants:
            note = _note(version, variant, previous, variant)
            wanted.append((Pair(version.name, variant, previous.name, False, note=note), previous.items(variant), mine))
        if variant != TEACHER and TEACHER in version.variants:
            note = _note(version, variant, version, TEACHER)
            wanted.append((Pair(version.name, variant, TEACHER, True, note=note), version.items(TEACHER), mine))
    return wanted


def _note(version: Version, variant: str, other: Version, against: str) -> str:
    """Why two variants are not to be compared, whatever they scored; empty if they are."""
    if f"{EVALUATE}{variant}" in version.stale:
        return STALE
    return AGAINST_STALE if f"{EVALUATE}{against}" in other.stale else ""


def _count(tables: dict[str, Scored], one: str | None, other: str | None) -> int:
    """How many comparisons a pair will give, at most."""
    scored = tables.get(one or "")
    return 0 if scored is None or tables.get(other or "") is None or one == other else scored.measures


def _compared(pair: Pair, tables: dict[str, Scored], one: str | None, other: str | None, resamples: int) -> Pair:
    if pair.note:
        return pair
    before, after = tables.get(one or ""), tables.get(other or "")
    if before is None or after is None:
        return replace(pair, note=NO_ITEMS)
    if one == other:
        return replace(pair, note=SAME_BYTES)
    shared = verdicts.compare(before, after, resamples)
    telling = tuple(comparison for comparison in shared if _tells(comparison, pair))
    return replace(pair, comparisons=telling, note="" if telling else NOTHING_SHARED)


def _tells(comparison: Comparison, pair: Pair) -> bool:
    """Whether a measure says something of a pair: the teacher's KL to itself, and agreement with itself, do not."""
    return comparison.measure not in ("kl", "top1") or not (pair.within or pair.variant == TEACHER)
