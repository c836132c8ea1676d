"""Instructions whose fulfilment code can check: a subject to write about, and one thing to heed."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.evaluation.made.rows import distinct

SUBJECTS = (
    "the sea", "a rainy day", "learning to swim", "a small village", "the moon", "a good breakfast",
    "growing tomatoes", "an old bicycle", "a long train ride", "a lost cat", "the first snow",
    "a visit to the dentist", "a birthday party", "cleaning the kitchen", "a night in the forest", "a busy market",
    "saving money", "a new neighbour", "baking bread", "a walk along the river", "waiting for a bus",
    "an honest mistake", "moving to another city", "a power cut", "keeping bees", "a broken window",
    "a letter from a friend", "the smell of coffee", "a summer holiday", "a school play",
)  # fmt: skip
FORMS = ("a short text", "a short note", "a short description", "something")
LAST_WORDS = ("home", "green", "music", "stone", "tomorrow", "silver", "quietly", "window", "friend", "seven")
LETTERS = "bcdfghklmpuvwy"
LENGTHS = (10, 15, 20, 30, 40)
COUNTS = (2, 3, 4, 5)
KEYS = ("title", "place", "mood", "colour", "season", "sound")
MARKS = (("***", "three asterisks"), ("<end>", "the mark <end>"), ("###", "three hash signs"), ("~~~", "three tildes"))
BULLET = re.compile(r"^[ \t]*[-*•][ \t]+\S")
WORD = re.compile(r"[\w'\u2019-]+")


@dataclass(frozen=True)
class Instruction:
    """A user's turn, and what its answer must keep to: a kind of CHECKS, and the value that it is asked for."""

    prompt: str
    kind: str
    asked: str

    def followed(self, answer: str) -> bool:
        """Whether an answer does what was asked. An empty one never does."""
        return bool(answer.strip()) and CHECKS[self.kind](answer.strip(), self.asked)


def make_instructions(seed: int, items: int) -> list[Instruction]:
    """As many as asked for, the kinds in turn; the same seed gives the same, and fewer are the first of more.

    Raises:
        ValueError: there are not so many that differ.
    """
    if items > MOST_INSTRUCTIONS:
        raise ValueError(f"{items} instructions were asked for; {MOST_INSTRUCTIONS} can be made without repeating one")
    rng = random.Random(f"{seed}:instructions")
    draws = {kind: distinct(_drawn(rng, kind)) for kind in KINDS}
    return [next(draws[[*KINDS][number % len(KINDS)]]) for number in range(items)]


def _drawn(rng: random.Random, kind: str) -> Callable[[], Instruction]:
    def draw() -> Instruction:
        text = f"Write {rng.choice(FORMS)} about {rng.choice(SUBJECTS)}."
        sentence, asked = KINDS[kind](rng, text)
        return Instruction(f"{text} {sentence}", kind, asked)

    return draw


def _last_word(rng: random.Random, text: str) -> tuple[str, str]:
    word = rng.choice(LAST_WORDS)
    return f'The last word of your answer must be "{word}".', word


def _capitals(rng: random.Random, text: str) -> tuple[str, str]:
    return "Write your whole answer in capital letters.", ""


def _lower_case(rng: random.Random, text: str) -> tuple[str, str]:
    return "Use no capital letters in your answer.", ""


def _bullets(rng: random.Random, text: str) -> tuple[str, str]:
    count = rng.choice(COUNTS)
    return f'Answer with exactly {count} lines, each of which begins with "- ".', str(count)


def _without_letter(rng: random.Random, text: str) -> tuple[str, str]:
    letter = rng.choice(LETTERS)
    return f'Do not use the letter "{letter}" anywhere in your answer.', letter


def _at_most_words(rng: random.Random, text: str) -> tuple[str, str]:
    count = rng.choice(LENGTHS)
    return f"Use at most {count} words.", str(count)


def _json_keys(rng: random.Random, text: str) -> tuple[str, str]:
    keys = sorted(rng.sample(KEYS, 2))
    return f'Answer with a JSON object alone, with the keys "{keys[0]}" and "{keys[1]}" and no others.', " ".join(keys)


def _repeated(rng: random.Random, text: str) -> tuple[str, str]:
    return "Before you answer, repeat the sentence above this one word for word.", text


def _without_comma(rng: random.Random, text: str) -> tuple[str, str]:
    return "Use no commas in your answer.", ""


def _closing_mark(rng: random.Random, text: str) -> tuple[str, str]:
    mark, called = rng.choice(MARKS)
    return f"End your answer with {called}: {mark}", mark


def _is_bulleted(answer: str, count: str) -> bool:
    lines = [line for line in answer.splitlines() if line.strip()]
    return len(lines) == int(count) and all(BULLET.match(line) for line in lines)


def _has_keys(answer: str, keys: str) -> bool:
    """A fence around the object is let pass."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", answer, re.DOTALL)
    try:
        read = json.loads(fenced[1] if fenced else answer)
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(read, dict) and sorted(read) == keys.split()


def _ends_with(answer: str, word: str) -> bool:
    words = WORD.findall(answer)
    return bool(words) and words[-1].casefold() == word


KINDS: dict[str, Callable[[random.Random, str], tuple[str, str]]] = {
    "last word": _last_word,
    "capitals": _capitals,
    "lower case": _lower_case,
    "bullets": _bullets,
    "without a letter": _without_letter,
    "at most words": _at_most_words,
    "JSON keys": _json_keys,
    "repeated": _repeated,
    "without commas": _without_comma,
    "closing mark": _closing_mark,
}
"""Of each kind, the sentence that asks for it and the value that is asked for."""

CHECKS: dict[str, Callable[[str, str], bool]] = {
    "last word": _ends_with,
    "capitals": lambda answer, _: answer.isupper(),
    "lower case": lambda answer, _: answer.islower(),
    "bullets": _is_bulleted,
    "without a letter": lambda answer, letter: letter not in answer.casefold(),
    "at most words": lambda answer, count: len(WORD.findall(answer)) <= int(count),
    "JSON keys": _has_keys,
    "repeated": lambda answer, text: answer.lstrip("\"'* ").startswith(text) and len(answer) > len(text) + 20,
    "without commas": lambda answer, _: "," not in answer,
    "closing mark": lambda answer, mark: answer.endswith(mark),
}
"""Of each kind, whether an answer without blanks around it keeps to the value."""

MOST_INSTRUCTIONS = len(KINDS) * len(SUBJECTS) * len(FORMS)  # the kinds without a value of their own are the fewest
