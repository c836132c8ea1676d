"""Which token ids a model and its tokenizer know, and what they stand for."""

from typing import Any

from transformers import PreTrainedModel


def vocabulary(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer knows, in order. They may have holes, and be fewer than the embedding's rows."""
    return sorted(set(tokenizer.get_vocab().values()))


def special_tokens(tokenizer: Any) -> list[int]:
    """Ids of the tokens that stand for no text."""
    added = [token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special]
    return sorted({*tokenizer.all_special_ids, *added})


def no_text(tokenizer: Any) -> list[int]:
    """Ids below the tokenizer's last that stand for no text: special tokens, and holes."""
    known = vocabulary(tokenizer)
    return sorted({*special_tokens(tokenizer), *range(known[-1])} - ({*known} - {*special_tokens(tokenizer)}))


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Ids of the tokens that end a text, of which a model may have none, one or several."""
    eos = model.generation_config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
