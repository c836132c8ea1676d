"""Conversations of two turns: what a user says. The second turn refers to the answer to the first."""

import random
from collections.abc import Callable

from pipeline.evaluation.made.arithmetic import drawn_problem
from pipeline.evaluation.made.instructions import SUBJECTS
from pipeline.evaluation.made.rows import distinct
from pipeline.evaluation.made.words import NAMES

Turns = tuple[str, str]

TEXTS = ("a short story", "a short poem", "a letter to a friend", "a note for a diary", "a paragraph")
CHANGES = (
    "Now make it half as long.",
    "Now rewrite it so that it sounds sad.",
    "Now rewrite it for a child of six.",
    "Now give what you wrote a title, and say why it fits.",
    "Now change the ending of what you wrote.",
)
TRADES = ("baker", "sailor", "teacher", "gardener", "doctor", "musician", "carpenter", "librarian")
HOMES = (
    "by the harbour",
    "in the old town",
    "in a mountain village",
    "near the station",
    "on a small island",
    "at a lake",
)
CHORES = (
    "remove a stain of coffee from a shirt", "boil an egg", "keep bread fresh", "clean a window", "pack a suitcase",
    "fall asleep sooner", "water plants during a holiday", "sharpen a knife", "mend a flat tyre",
    "save electricity at home", "choose a ripe melon", "get rid of a bad smell in a fridge", "remember names",
    "prepare for an exam", "make strong tea", "dry wet shoes", "iron a shirt", "store potatoes", "start jogging",
    "calm a crying baby",
)  # fmt: skip
ASKED = (
    "How can I {}?",
    "What is the best way to {}?",
    "Please tell me how to {}.",
    "Which three steps do I need to {}?",
)
MORE = (
    "Which of these points matters most, and why?",
    "What could go wrong with that?",
    "Sum up what you said in one sentence.",
    "How long does that take?",
    "What do I need to buy for that?",
)
CHECKED = (
    "Explain the first step of your answer again.",
    "What would the answer be if there were one more at the start?",
    "Check your answer. Is it right?",
    "Write your answer as one equation.",
)
PLACED = (
    "Now write what you found as one sentence.",
    "Which of the things that you listed comes first in the text?",
    "Now put what you listed into the order of the alphabet.",
)
TALK = (
    "What do you like about what you just told me?",
    "Tell me more about the first thing that you said.",
    "And what was the hardest part of that?",
    "Would you do that again?",
)


def make_dialogues(seed: int, items: int) -> list[Turns]:
    """A user's two turns, as many as asked for, the kinds in turn; the same seed gives the same, and fewer are the
    first of more.

    Raises:
        ValueError: there are not so many that differ.
    """
    if items > MOST_DIALOGUES:
        raise ValueError(f"{items} dialogues were asked for; {MOST_DIALOGUES} can be made without repeating one")
    rng = random.Random(f"{seed}:dialogue")
    draws = [distinct(_drawn(rng, draw)) for draw in KINDS.values()]
    return [next(draws[number % len(draws)]) for number in range(items)]


def _drawn(rng: random.Random, draw: Callable[[random.Random], Turns]) -> Callable[[], Turns]:
    return lambda: draw(rng)


def _writing(rng: random.Random) -> Turns:
    return f"Write {rng.choice(TEXTS)} about {rng.choice(SUBJECTS)}.", rng.choice(CHANGES)


def _reasoning(rng: random.Random) -> Turns:
    return f"{drawn_problem(rng, rng.choice((2, 3))).text} Explain your steps.", rng.choice(CHECKED)


def _extraction(rng: random.Random) -> Turns:
    people, trades, homes = rng.sample(NAMES, 3), rng.sample(TRADES, 3), rng.sample(HOMES, 3)
    told = " ".join(
        f"{name} is a {trade} and lives {home}." for name, trade, home in zip(people, trades, homes, strict=True)
    )
    wanted = rng.choice(("the names", "the jobs", "the places"))
    return f'List {wanted} in this text: "{told}"', rng.choice(PLACED)


def _roleplay(rng: random.Random) -> Turns:
    name, trade, home = rng.choice(NAMES), rng.choice(TRADES), rng.choice(HOMES)
    return f"Pretend that you are {name}, a {trade} who lives {home}. Tell me about your day.", rng.choice(TALK)


def _everyday(rng: random.Random) -> Turns:
    return rng.choice(ASKED).format(rng.choice(CHORES)), rng.choice(MORE)


KINDS: dict[str, Callable[[random.Random], Turns]] = {
    "writing": _writing,
    "reasoning": _reasoning,
    "extraction": _extraction,
    "roleplay": _roleplay,
    "everyday": _everyday,
}
MOST_DIALOGUES = len(KINDS) * len(ASKED) * len(CHORES) * len(MORE)  # everyday questions are the fewest
