"""Robustness: the sentiment of a made review, as it is and attacked, in pairs.

No attack changes the judgement: neighbouring letters swapped, letters left out or doubled, a sentence about
something else.
"""

import random
from collections.abc import Callable, Mapping
from itertools import combinations, product

from pipeline.evaluation.made.rows import Places, Row, placed

LEVELS = ("clean", "attacked")
LABELS = ("positive", "negative")
PRAISE = {
    "food": ("the food was delicious", "every dish tasted wonderful", "the soup was hot and tasty"),
    "staff": ("the staff were friendly", "the waiter helped us kindly", "everybody was polite to us"),
    "room": ("the room was clean and bright", "our room was lovely", "the bed was comfortable"),
    "price": ("the price was fair", "it was worth the money", "it cost less than we feared"),
    "time": ("we were served at once", "nothing took long", "all was ready when we came"),
    "place": ("the view was beautiful", "the garden was charming", "it was pleasantly quiet"),
}
BLAME = {
    "food": ("the food was disgusting", "every dish tasted burnt", "the soup was cold and salty"),
    "staff": ("the staff were rude", "the waiter shouted at us", "nobody cared about us"),
    "room": ("the room was dirty and dark", "our room smelled awful", "the bed was broken"),
    "price": ("the price was a shame", "it was a waste of money", "it cost more than it should"),
    "time": ("we waited for hours", "everything took far too long", "nothing was ready when we came"),
    "place": ("the view was a dirty wall", "the garden was a mess", "it was terribly loud"),
}
DISTRACTIONS = {
    "positive": (
        "My sister had an awful day at work.",
        "The weather was horrible.",
        "Our car broke down on the way home.",
    ),
    "negative": ("My sister had a great day at work.", "The weather was lovely.", "Our new car runs very well."),
}
"""Of the other sentiment, about something else."""

Review = tuple[str, str, str]
"""The label and the two statements, of different aspects."""


def attacked(rng: random.Random, items: int) -> list[Row]:
    """Is the review positive or negative? Two rows a review: clean and attacked, the kinds of attack in turn."""
    places = Places(rng)
    rows: list[Row] = []
    reviews = {label: iter(rng.sample(made, len(made))) for label, made in REVIEWS.items()}
    labels = Places(rng)
    cluster = 0
    while len(rows) < items:
        label, first, second = next(reviews[LABELS[labels.next(len(LABELS))]])
        text = f"{first.capitalize()} and {second}."
        place = places.next(len(LABELS))
        choices = placed(label, [other for other in LABELS if other != label], place)
        attack = [*ATTACKS.values()][cluster % len(ATTACKS)]
        for level, review in zip(LEVELS, (text, attack(rng, text, label)), strict=True):
            rows.append(
                {
                    "context": f"Review: {review}\nThe sentiment of the review is",
                    "choices": choices,
                    "answer": place,
                    "cluster": cluster,
                    "level": level,
                }
            )
        cluster += 1
    return rows[:items]


def _swapped(rng: random.Random, text: str, label: str) -> str:
    """Two inner letters that stand beside each other change places, in each word where they differ."""

    def swap(word: str) -> str:
        spots = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
        if not spots:
            return word
        i = rng.choice(spots)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]

    return _words(text, swap)


def _typos(rng: random.Random, text: str, label: str) -> str:
    """In each word of four letters or more one inner letter is missing or doubled."""

    def slip(word: str) -> str:
        i = rng.randrange(1, len(word) - 1)
        return word[:i] + rng.choice(("", 2 * word[i])) + word[i + 1 :]

    return _words(text, slip)


def _distracted(rng: random.Random, text: str, label: str) -> str:
    """A sentence of the other sentiment about something else stands before it."""
    return f"{rng.choice(DISTRACTIONS[label])} {text}"


def _words(text: str, change: Callable[[str], str]) -> str:
    """A text whose words of four letters or more are changed."""
    words = text.removesuffix(".").split(" ")
    return " ".join(change(word) if len(word) >= 4 else word for word in words) + "."


def _reviews(label: str, statements: Mapping[str, tuple[str, ...]]) -> list[Review]:
    return [
        (label, *ordered)
        for one, other in combinations(statements, 2)
        for pair in product(statements[one], statements[other])
        for ordered in (pair, pair[::-1])
    ]


ATTACKS: dict[str, Callable[[random.Random, str, str], str]] = {
    "swapped letters": _swapped,
    "typos": _typos,
    "distraction": _distracted,
}
REVIEWS = {"positive": _reviews("positive", PRAISE), "negative": _reviews("negative", BLAME)}
MOST_ATTACKED = len(LEVELS) * sum(len(made) for made in REVIEWS.values())
