"""The tokenizer that lies beside an export in Hugging Face layout, for runtimes that bring none of their own."""

from typing import Any

from pipeline.runtimes.opened import Messages, listed


class FromFolder:
    """`ids` and `chat` of `Opened`, by transformers."""

    tokenizer: Any

    def ids(self, text: str) -> list[int] | None:
        return listed(self.tokenizer(text))

    def chat(self, messages: Messages) -> str | None:
        return rendered(self.tokenizer, messages)


def rendered(tokenizer: Any, messages: Messages) -> str | None:
    """A conversation in a tokenizer's chat template, with the opening of the answer; None if it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
