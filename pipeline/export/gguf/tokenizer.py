"""A tokenizer as llama.cpp has it: byte-level BPE, and a way of splitting a text that llama.cpp knows by name.

What kind of tokenizer a file holds is told by its rules, not by the model's name, so that a retrained vocabulary counts
as what it is.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from transformers import PreTrainedTokenizerBase

SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
SPLITS = {  # a pattern, and what llama.cpp calls it
    CONTRACTIONS + WORDS % r"\p{N}{1,3}": "llama-bpe",
    CONTRACTIONS + WORDS % r"\p{N}": "qwen2",
}
NORMALIZERS = {"qwen2": ("NFC",)}  # which a way of splitting goes with; llama.cpp has no name for others
IGNORES_MERGES = ("llama-bpe",)  # a word that is a token is not split, whatever the merges say


def splitting(tokenizer: PreTrainedTokenizerBase) -> str:
    """What llama.cpp calls the tokenizer's way of splitting a text before merges are looked up.

    Raises:
        ValueError: it is no byte-level BPE, or splits in a way that llama.cpp has no name for.
    """
    rules = _rules(tokenizer)
    kind = rules["model"]["type"]
    steps = list(_steps(rules.get("pre_tokenizer")))
    if kind != "BPE" or rules["model"].get("byte_fallback") or not steps or steps[-1].get("type") != "ByteLevel":
        raise ValueError("its tokenizer is no byte-level BPE, the one kind that is written into a GGUF here")
    if not rules["model"]["merges"]:
        raise ValueError("its tokenizer has no merges, without which llama.cpp loads no file")
    before, last = steps[:-1], steps[-1]
    name = _name(before, last)
    normalizers = [step["type"] for step in _steps(rules.get("normalizer"))]
    fits = (
        name is not None
        and not last.get("add_prefix_space")
        and (not normalizers or normalizers == list(NORMALIZERS.get(name, ())))
        and bool(rules["model"].get("ignore_merges")) == (name in IGNORES_MERGES)
    )
    if name is None or not fits:
        raise ValueError(
            f"its tokenizer splits a text in a way that llama.cpp has no name for: {json.dumps(steps)}, normalized by "
            f"{normalizers or 'nothing'}"
        )
    return name


def _name(before: list[dict[str, Any]], last: dict[str, Any]) -> str | None:
    if last.get("use_regex", True):
        return "gpt-2" if not before else "smollm" if before == [SINGLE_DIGITS] else None
    patterns = [step.get("pattern", {}).get("Regex") for step in before if step["type"] == "Split"]
    return SPLITS.get(patterns[0]) if len(before) == len(patterns) == 1 else None


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("its tokenizer has no tokenizer.json, by whose rules it could be written into a GGUF")
    return json.loads(backend.to_str())


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, one after the other."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for inner in step.get("pretokenizers") or step.get("normalizers") or ():
            yield from _steps(inner)
    else:
        yield step


def write(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, folder: Path, vocabulary: int) -> None:
    """Write a tokenizer that `splitting` knows, its special tokens and its chat template.

    Args:
        folder: holds the tokenizer in Hugging Face layout. vocabulary: rows of the embedding; what is beyond the
            tokenizer's own tokens is never a text's.
    """
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting(tokenizer))
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for number in range(vocabulary):
        token = by_id.get(number)
        added = tokenizer.added_tokens_decoder.get(number)
        tokens.append(f"[PAD{number}]" if token is None else token)
        if token is None:
            kinds.append(TokenType.UNUSED)
        elif added is None:
            kinds.append(TokenType.NORMAL)
        else:
            kinds.append(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = SpecialVocab(folder, load_merges=True, n_vocab=vocabulary)
    around = tokenizer("a")["input_ids"]
    special.add_special_token = {
        "bos": around[:1] == [tokenizer.bos_token_id],
        "eos": around[-1:] == [tokenizer.eos_token_id],
    }
    special.add_to_gguf(writer, quiet=True)
