"""State tracking: who has a thing after it was passed on? The number of times that things were passed is the level.

Who was named latest, or first, is right as often as anybody else: the answer's place in the order of latest mentions is
balanced, and the choices are all who are named.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.evaluation.made.rows import Places, Row, distinct, placed
from pipeline.evaluation.made.words import NAMES, OBJECTS

STEPS = (1, 2, 4)
PEOPLE = 3
THINGS = 4  # one more than people, so that who gave a thing away may have another


@dataclass(frozen=True)
class _Story:
    text: str
    holders: tuple[tuple[str, str], ...]  # thing, who has it in the end
    people: tuple[str, ...]  # in the order of their latest mention

    def rank(self, thing: str) -> int:
        return self.people.index(dict(self.holders)[thing])


def state(rng: random.Random, items: int) -> list[Row]:
    """Who has it now? One choice a person."""
    rows: list[Row] = []
    places, ranks = Places(rng), Places(rng)
    stories = {steps: distinct(_drawn(rng, steps)) for steps in STEPS}
    for number in range(items):
        steps = STEPS[number % len(STEPS)]
        level = f"{steps} step{'s' if steps > 1 else ''}"
        rank = ranks.next(PEOPLE, level)
        story, thing = _asked(rng, stories[steps], rank)
        place = places.next(PEOPLE, level)
        right = dict(story.holders)[thing]
        wrong = rng.sample([person for person in story.people if person != right], PEOPLE - 1)
        rows.append(
            {
                "context": f"{story.text} Now the {thing} is with",
                "choices": placed(right, wrong, place),
                "answer": place,
                "cluster": number,
                "level": level,
            }
        )
    return rows


def _asked(rng: random.Random, stories: Iterator[_Story], rank: int) -> tuple[_Story, str]:
    """The next story with a thing whose holder has the wanted rank, and that thing."""
    for story in stories:
        things = [thing for thing, _ in story.holders if story.rank(thing) == rank]
        if things:
            return story, rng.choice(things)
    raise AssertionError("stories do not end")


def _drawn(rng: random.Random, steps: int) -> Callable[[], _Story]:
    return lambda: _story(rng, steps)


def _story(rng: random.Random, steps: int) -> _Story:
    people, things = rng.sample(NAMES, PEOPLE), rng.sample(OBJECTS, THINGS)
    owners = [*people, rng.choice(people)]
    rng.shuffle(owners)
    holders = dict(zip(things, owners, strict=True))
    sentences = [f"{person} has the {thing}." for thing, person in holders.items()]
    mentions = [*owners]
    for _ in range(steps):
        thing = rng.choice(things)
        giver = holders[thing]
        taker = rng.choice([person for person in people if person != giver])
        sentences.append(f"{giver} gives the {thing} to {taker}.")
        holders[thing] = taker
        mentions += [giver, taker]
    latest = sorted(people, key=lambda person: mentions[::-1].index(person))
    return _Story(" ".join(sentences), tuple(holders.items()), tuple(latest))
