"""How a conversation begins in a tokenizer's chat template.

A model that was tuned on conversations, and is given what the template puts before the user's words, goes on with a
question and its own answer (Magpie, 2406.08464): text of its own kind, without any data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

ASKED, ANSWERED = "permafrost-asked", "permafrost-answered"  # stand for the words of the two
TODAY = (  # for templates that tell the model the date: the same on every day
    "{%- macro strftime_now(form) -%}{{ '2024-07-26' if form == '%Y-%m-%d' else '26 Jul 2024' }}{%- endmacro -%}"
)


@dataclass(frozen=True)
class Opening:
    """tokens: what stands before the user's words. ends: the end-of-sequence tokens in it, after its first token, and
    between the user's words and the model's."""

    tokens: list[int]
    ends: int


def opening(tokenizer: PreTrainedTokenizerBase, eos: Sequence[int]) -> Opening | None:
    """The beginning of a conversation; None where there is no chat template, or nothing before the user's words.

    Raises:
        ValueError: the template fails, or does not say what it is told.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
    template = TODAY + tokenizer.get_chat_template()
    try:
        text = str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the tokenizer's chat template fails: {error}; synthesize.chat: 0 does without") from error
    before, _, rest = text.partition(ASKED)
    between, answered, _ = rest.partition(ANSWERED)
    if not answered:
        raise ValueError("the tokenizer's chat template leaves out what is said; synthesize.chat: 0 does without")
    tokens, inner = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, between))
    return Opening(tokens, sum(token in eos for token in [*tokens[1:], *inner])) if tokens else None
