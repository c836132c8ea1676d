"""A tiny random causal LM and a byte-level tokenizer that needs no network: what tests quantize."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, after three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(SPECIAL + alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Of the same size, with a merge, as llama.cpp needs one: byte 255, which no text has, gives its place to ` t`."""
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet()} - {"ÿ"})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet, "Ġt"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "t")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write one beside a model of any family: Qwen2's class would add a token for what it does not know."""
    tokenizer.unk_token = "<pad>"
    tokenizer.save_pretrained(folder)


def llama(seed: int = 0, layers: int = 2, hidden: int = 32, tie: bool = True) -> LlamaForCausalLM:
    """A random Llama with grouped-query attention, float32, in eval mode."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def save(folder: Path, **options: int | bool) -> Path:
    """Write model and tokenizer in Hugging Face layout; returns the folder."""
    llama(**options).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer().save_pretrained(folder)
    return folder


def save_whole(folder: Path) -> Path:
    """A model that every format of the export holds; returns the folder."""
    llama().save_pretrained(folder)
    merging_tokenizer().save_pretrained(folder)
    return folder
