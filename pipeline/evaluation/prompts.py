"""What is said to models by the knobs: the dialogues that the teacher answers, and the instructions that all do."""

from dataclasses import dataclass
from typing import Any

from pipeline.evaluation import turns, writing
from pipeline.evaluation.made.dialogue import make_dialogues
from pipeline.evaluation.made.instructions import Instruction, make_instructions


@dataclass(frozen=True)
class Prompts:
    """said: of each conversation, the tokens before each answer, as `writing.write` takes them. template: whether they
    stand in the tokenizer's chat template. instructions: those that are said, where they are any."""

    said: list[list[list[int]]]
    template: bool
    instructions: list[Instruction]

    def longest(self, limit: int) -> int:
        """Tokens of the longest of them with answers of `limit` tokens; 0 of none."""
        return writing.longest(self.said, limit)

    def steps(self, limit: int) -> int:
        """Forwards that answering all of them takes at most."""
        return writing.steps(self.said, limit)


def dialogues(seed: int, count: int, tokenizer: Any) -> Prompts:
    """Conversations of two turns.

    Raises:
        ValueError: the tokenizer's chat template does not hold them, or there are not so many.
    """
    if not count:
        return Prompts([], False, [])
    frame = turns.of(tokenizer)
    said = [[frame.first(tokenizer, one), frame.second(tokenizer, two)] for one, two in make_dialogues(seed, count)]
    return Prompts(said, frame.template, [])


def instructions(seed: int, count: int, tokenizer: Any) -> Prompts:
    """Instructions, an answer each.

    Raises:
        ValueError: as `dialogues`.
    """
    if not count:
        return Prompts([], False, [])
    frame, asked = turns.of(tokenizer), make_instructions(seed, count)
    return Prompts([[frame.first(tokenizer, instruction.prompt)] for instruction in asked], frame.template, asked)


def too_long(most: int | None, lengths: dict[str, int]) -> list[str]:
    """A line for each text that a model cannot read.

    Args:
        most: tokens of its context; None: no limit. lengths: tokens, by the knob that asks for them.
    """
    return [
        f"{knob}: {count} tokens are more than the {most} of the model's context; lower it"
        for knob, count in lengths.items()
        if most is not None and count > most
    ]
