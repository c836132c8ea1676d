"""State tracking: who has a thing after things were passed on? How often they were is the level.

Who was named latest, or first, is right as often as anybody else: the place of the answer in the order in which the
choices are named is balanced. Where the thing was passed on, who had it before is a choice.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.evaluation.made.rows import Places, Row, distinct, placed
from pipeline.evaluation.made.words import ADJECTIVES, NAMES, NOUNS

STEPS = (1, 2, 4)
THINGS = 3
CHOICES = 4


@dataclass(frozen=True)
class _Story:
    """Who gets which thing, in order; the first THINGS of them are who has what at first. Nobody gets two."""

    passes: tuple[tuple[str, str], ...]

    def owners(self, thing: str) -> list[str]:
        """Who had a thing, the present owner last."""
        return [person for passed, person in self.passes if passed == thing]

    def order(self, people: list[str]) -> list[str]:
        return [person for _, person in self.passes if person in people]


def state(rng: random.Random, items: int) -> list[Row]:
    """Who has it now? Four choices, all of them people who have or had something."""
    rows: list[Row] = []
    places, ranks = Places(rng), Places(rng)
    stories = {steps: distinct(_drawn(rng, steps)) for steps in STEPS}
    for number in range(items):
        steps = STEPS[number % len(STEPS)]
        level = f"{steps} step{'s' if steps > 1 else ''}"
        story, thing, wrong = _asked(rng, stories[steps], ranks.next(CHOICES, level))
        place = places.next(CHOICES, level)
        told = "\n".join(f"The {passed} goes to {person}." for passed, person in story.passes)
        rows.append(
            {
                "context": f"{told}\nIn the end:\nThe {thing} goes to",
                "choices": placed(f"{story.owners(thing)[-1]}.", [f"{person}." for person in wrong], place),
                "answer": place,
                "cluster": number,
                "level": level,
            }
        )
    return rows


def _asked(rng: random.Random, stories: Iterator[_Story], rank: int) -> tuple[_Story, str, list[str]]:
    """The next story in which a thing can be asked so that the right choice has the wanted rank among the choices, in
    the order in which they are named; that thing and the wrong choices."""
    for story in stories:
        thing = rng.choice(story.passes)[0]
        *before, owner = story.owners(thing)
        others = [person for _, person in story.passes if person != owner and person not in before[-1:]]
        wrong = before[-1:] + rng.sample(others, CHOICES - 1 - len(before[-1:]))
        if story.order([owner, *wrong]).index(owner) == rank:
            return story, thing, rng.sample(wrong, len(wrong))
    raise AssertionError("stories do not end")


def _drawn(rng: random.Random, steps: int) -> Callable[[], _Story]:
    def draw() -> _Story:
        described = zip(rng.sample(ADJECTIVES, THINGS), rng.sample(NOUNS, THINGS), strict=True)
        things = [f"{adjective} {noun}" for adjective, noun in described]
        passed = [*things, *(rng.choice(things) for _ in range(steps))]
        return _Story(tuple(zip(passed, rng.sample(NAMES, len(passed)), strict=True)))

    return draw
