"""What stands around the words of two turns of talk: a tokenizer's chat template, or plain names where it has none.

The pieces are encoded one by one, so what a model wrote goes back into its context as the tokens that it wrote.
"""

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from pipeline.corpus.conversation import TODAY

SAID = ("permafrost-asked", "permafrost-answered", "permafrost-asked-again")  # stand for the words
PLAIN = ("User: ", "\nAssistant:", "\n\nUser: ", "\nAssistant:")  # before, between and behind them


@dataclass(frozen=True)
class Turns:
    """The text before the user's first words, behind these, between the answer and the second, and behind those.

    template: whether it is the tokenizer's chat template.
    """

    before: str
    asked: str
    answered: str
    again: str
    template: bool

    def first(self, tokenizer: Any, words: str) -> list[int]:
        """The tokens that stand before the first answer."""
        return _encoded(tokenizer, self.before + words + self.asked)

    def second(self, tokenizer: Any, words: str) -> list[int]:
        """The tokens between the two answers."""
        return _encoded(tokenizer, self.answered + words + self.again)


def of(tokenizer: Any) -> Turns:
    """How a tokenizer frames a conversation of two turns.

    Raises:
        ValueError: its chat template fails, or does not say what it is told.
    """
    if not tokenizer.chat_template:
        return Turns(*PLAIN, template=False)
    roles = ("user", "assistant", "user")
    talk = [{"role": role, "content": words} for role, words in zip(roles, SAID, strict=True)]
    template = TODAY + tokenizer.get_chat_template()
    without = "references.dialogues: 0 and evaluate.instructions: 0 do without"
    try:
        text = str(
            tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=True)
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the tokenizer's chat template fails on two turns: {error}; {without}") from error
    pieces = []
    for words in SAID:
        piece, there, text = text.partition(words)
        if not there:
            raise ValueError(f"the tokenizer's chat template leaves out what is said in two turns; {without}")
        pieces.append(piece)
    before, asked, answered = pieces
    return Turns(before, asked, answered, text, template=True)


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
