"""What a teacher must be before hours are spent on it: finite, causal, with a tokenizer that fits."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.models.loading import some

LOOKS_AHEAD = 1e-3  # of the largest logit: the change of earlier logits from which on a model has read later tokens


def check_finite(model: PreTrainedModel) -> None:
    """Raises:
    ValueError: parameters or buffers hold NaN or infinity; names them, and tells how many values.
    """
    bad = [
        f"{name} ({int((~values.isfinite()).sum())} of {values.numel()})"
        for name, values in model.state_dict().items()
        if values.is_floating_point() and not bool(values.isfinite().all())
    ]
    if bad:
        raise ValueError(f"these weights are not finite: {some(bad)}; is the teacher sound? Fetch or save it again")


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Change the later half of 16 tokens; no logits of the earlier half may follow.

    Raises:
        ValueError: they do, as an encoder's do, or the model cannot read a text alone.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(16) % rows
    other = torch.where(torch.arange(16) < 8, tokens, (tokens + rows // 2) % rows)
    try:
        before, after = (
            model.eval()(input_ids=ids[None], use_cache=False).logits[0, :8].float() for ids in (tokens, other)
        )
    except Exception as error:  # whatever a forward raises that wants more than tokens
        raise ValueError(f"{type(model).__name__} cannot read a text alone: {type(error).__name__}: {error}") from error
    change = float((after - before).abs().max() / before.abs().max().clamp(min=1e-30))
    if not change <= LOOKS_AHEAD:
        raise ValueError(
            f"{type(model).__name__} is no causal language model: its logits change by {change:.1%} with tokens that "
            "come later, as an encoder's do; take a decoder"
        )


def check_tokenizer(model: PreTrainedModel, tokenizer: Any) -> None:
    """Raises:
    ValueError: the tokenizer has ids that the embedding has no row for; names the tokens.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = [f"{token!r} ({i})" for token, i in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1]) if i >= rows]
    if beyond:
        raise ValueError(
            f"the model's embedding has {rows} rows, none for these of its tokenizer: {some(beyond)}; take them out of "
            "the tokenizer, or give the model rows for them (resize_token_embeddings), and save both"
        )


def check_all_taken(model: PreTrainedModel, elements: Mapping[str, int]) -> None:
    """Check that a model has taken all of a GGUF, of which transformers' reader leaves out what it does not know.

    Args:
        elements: of each tensor, by its name in the file.

    Raises:
        ValueError: the model has not as many numbers as the file.
    """
    own = {values.data_ptr(): values.numel() for values in model.state_dict().values()}  # tied weights once
    if sum(own.values()) != sum(elements.values()):
        rope = [name for name in elements if name.startswith("rope_")]
        raise ValueError(
            f"the file has {sum(elements.values())} numbers, of which transformers takes {sum(own.values())}"
            + (f"; it leaves out {some(rope)}" if rope else "")
        )
