"""Log-likelihoods of texts that share what they begin with against lm-eval's own, one text a row."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, BambaConfig, GPTNeoConfig, MambaConfig, MistralConfig, PreTrainedModel

from pipeline.evaluation import prefixes
from pipeline.evaluation.prefixes import Request, SharedPrefixes, Tree
from pipeline.knobs.scheme import Activations, KVCache
from pipeline.quant.activations import Quantizer
from pipeline.quant.kv_cache import quantize_cache
from pipeline.quant.model import quantize_signals
from tests import tiny
from tests.families import FAMILIES, family

QUESTION, OTHER = list(range(40, 60)), [7, 8, 9]
REQUESTS: list[Request] = [
    (("", ""), QUESTION, [100, 101, 102]),
    (("", ""), OTHER, [50, 60]),
    (("", ""), QUESTION, [100, 103]),
    (("", ""), [*QUESTION[:10], 5, *QUESTION[10:]], [11, 12, 13]),
    (("", ""), QUESTION, [104]),
    (("", ""), OTHER, [50]),
    (("", ""), QUESTION, [100, 101, 102]),  # twice the same
]
SMALL: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
STATES = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "initializer_range")}
MIXED = {"mamba_d_head": 8, "mamba_n_heads": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "attn_layer_indices": [1]}
ALONE = {"mistral", "qwen2-window", "falcon-rw", "bloom", "mamba"}  # of windows, with linear biases, of states
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6)


def asked(model: PreTrainedModel, kind: type[HFLM], **options: Any) -> tuple[HFLM, list[tuple[float, bool]]]:
    engine = kind(pretrained=model, tokenizer=tiny.tokenizer(), batch_size=3, **options)
    with torch.inference_mode():
        return engine, engine._loglikelihood_tokens(REQUESTS, disable_tqdm=True)


def compared(model: PreTrainedModel) -> str:
    """Whether the answers are those of lm-eval; returns why texts were not put together."""
    done: list[int] = []
    _, theirs = asked(model, HFLM)
    engine, ours = asked(model, SharedPrefixes, begin=lambda count: done.append(-count) or done.append)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-4)
    assert done[0] == -len(REQUESTS) == -sum(done[1:])
    return engine.passed_over


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_gives_the_log_likelihoods_of_lm_eval(name: str):
    model = family(name)
    reason = compared(model)
    assert bool(reason) == (name in ALONE), reason


def test_texts_do_not_share_a_row_where_keys_are_rounded_by_their_places_in_it():
    """At 8 bits, a wrong place would change less than what is compared."""
    for scheme, reason in ((KVCache(8), ""), (KVCache(8, keys="channel"), "by their places in a row")):
        model = family("llama")
        undo = quantize_cache(model, scheme)
        said = compared(model)
        assert reason in said
        assert bool(reason) == bool(said)
        undo()
        assert compared(model) == ""


@pytest.mark.parametrize(
    ("bits", "cache"), [(4, KVCache(4)), (3, KVCache(2, group=8, symmetric=False)), (8, KVCache(8))]
)
def test_coarse_grids_do_not_hide_that_texts_may_share_a_row(bits: Any, cache: KVCache):
    """A code that rounding moves changes more than a mask that is read wrongly might; the answers stay near."""
    model = family("llama")
    quantizers = {
        name: Quantizer(Activations(bits, dynamic=True))
        for name, module in model.named_modules()
        if _in_a_layer(module)
    }
    undo = quantize_signals(model, quantizers, cache)
    _, theirs = asked(model, HFLM)
    engine, ours = asked(model, SharedPrefixes, begin=lambda _: int)
    undo()
    _, plain = asked(model, HFLM)
    assert engine.passed_over == ""
    apart, quantized = (_greatest_difference(answers, theirs) for answers in (ours, plain))
    assert apart < quantized / 4
    assert _greatest_difference(asked(model, SharedPrefixes, begin=lambda _: int)[1], plain) < 1e-4


def _in_a_layer(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and module.out_features != 259


def _greatest_difference(some: list[tuple[float, bool]], others: list[tuple[float, bool]]) -> float:
    return max(abs(a - b) for (a, _), (b, _) in zip(some, others, strict=True))


def test_a_mask_that_is_misread_is_seen_through_coarse_grids(monkeypatch: pytest.MonkeyPatch):
    """Texts in a row that attend to each other's answers: less than what 2 bits change, and refused all the same."""
    model = family("llama")
    undo = quantize_cache(model, KVCache(2))
    attends = Tree.attends.func  # type: ignore[attr-defined]
    monkeypatch.setattr(Tree, "attends", property(lambda tree: torch.ones_like(attends(tree)).tril()))
    engine, _ = asked(model, SharedPrefixes, begin=lambda _: int)
    undo()
    assert "other log-likelihoods" in engine.passed_over


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(**SMALL, sliding_window=8), "a window of the model's attention 8"),
        (MambaConfig(**STATES), "no cache of keys and values"),
        (BambaConfig(**SMALL, **MIXED), "its cache has layers of the kind"),
    ],
    ids=["window", "states", "states and attention"],
)
def test_a_model_that_cannot_read_a_tree_is_asked_as_lm_eval_asks_it(config: Any, reason: str):
    torch.manual_seed(0)
    assert reason in compared(AutoModelForCausalLM.from_config(config).eval())


def test_a_model_in_bfloat16_is_asked_as_lm_eval_asks_it():
    model = tiny.llama().to(torch.bfloat16)
    _, theirs = asked(model, HFLM)
    engine, ours = asked(model, SharedPrefixes, begin=lambda _: int)
    assert "bfloat16" in engine.passed_over
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=0.05)


def test_items_beyond_the_context_are_refused_where_lm_eval_would_cut_them():
    def begin(count: int) -> None:
        raise AssertionError("work has begun")

    fits, short = (
        AutoModelForCausalLM.from_config(MistralConfig(**SMALL, sliding_window=None, max_position_embeddings=length))
        for length in (23, 22)
    )
    assert compared(fits.eval()) == ""
    with pytest.raises(ValueError, match=r"1 of 7 answers .* than the 22 of .* \(the longest 23;"):
        asked(short, SharedPrefixes, begin=begin)


def test_texts_that_share_a_row_fit_in_the_context_together():
    """GPT-Neo's mask has a fixed number of positions."""
    shape = {
        "vocab_size": 259,
        "hidden_size": 32,
        "num_heads": 4,
        "num_layers": 2,
        "attention_types": [[["global"], 2]],
    }
    torch.manual_seed(0)
    config = GPTNeoConfig(**shape, max_position_embeddings=24, initializer_range=0.2)
    assert compared(AutoModelForCausalLM.from_config(config).eval()) == ""


def test_a_forward_has_a_bounded_number_of_tokens(monkeypatch: pytest.MonkeyPatch):
    """In a tree and padded, but for one text that is longer; what comes out is the same."""
    monkeypatch.setattr(prefixes, "TOKENS", 24)
    monkeypatch.setattr(prefixes, "ONE_ITEM", 30)
    for name, rest in (("llama", 32), ("mistral", 1)):
        model, read = family(name), []
        model.register_forward_pre_hook(
            lambda _, args, options, read=read: read.append((args[0] if args else options["input_ids"]).numel()),
            with_kwargs=True,
        )
        compared(model)
        engine, _ = asked(model, SharedPrefixes, begin=lambda _: int)
        assert bool(engine.passed_over) == (rest == 1)
        read.clear()
        many = [(("", ""), list(range(10 * i, 10 * i + 10)), [i]) for i in range(8)]
        with torch.inference_mode():
            for part in engine._parts([*range(8)], [10] * 8):
                ask = [many[i] for i in part]
                engine._plain(ask) if engine.passed_over else engine._together(ask)
        assert sum(read) == 80
        assert max(read) <= 24


def test_one_text_needs_no_mask(monkeypatch: pytest.MonkeyPatch):
    model = tiny.llama()
    engine = SharedPrefixes(lambda _: int, pretrained=model, tokenizer=tiny.tokenizer(), batch_size=1)
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda _, __, options: seen.append("attention_mask" in options), with_kwargs=True)
    with torch.inference_mode():
        (alone,), together = engine._together(REQUESTS[:1]), engine._together(sorted(REQUESTS))
    assert seen == [False, True]
    assert alone[0] == pytest.approx(together[sorted(REQUESTS).index(REQUESTS[0])][0], rel=1e-5)


def test_an_answer_without_a_question_follows_what_parts_documents():
    tokenizer = tiny.tokenizer()
    assert prefixes.opening(tokenizer) is None, "lm-eval takes the first token of a text"
    tokenizer.add_special_tokens({"additional_special_tokens": [prefixes.DOCUMENT]})
    assert prefixes.opening(tokenizer) == tokenizer.convert_tokens_to_ids(prefixes.DOCUMENT)


def test_a_question_is_read_once():
    model, read = tiny.llama(), []
    engine = SharedPrefixes(lambda _: int, pretrained=model, tokenizer=tiny.tokenizer(), batch_size=len(REQUESTS))
    model.register_forward_pre_hook(
        lambda _, args, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    with torch.inference_mode():
        engine._together(sorted(REQUESTS))
    distinct = {
        tuple(text[:n]) for text in ((a + b)[:-1] for _, a, b in sorted(REQUESTS)) for n in range(1, len(text) + 1)
    }
    assert sum(read) == len(distinct)


@given(SEQUENCES)
def test_a_tree_holds_each_sequence_and_what_comes_before_it(sequences: list[list[int]]):
    sequences.sort()
    tree = Tree.of(sequences)
    prefixes = {tuple(sequence[:n]) for sequence in sequences for n in range(1, len(sequence) + 1)}
    assert len(tree.tokens) == len(prefixes)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == sequence
        assert tree.positions[path].tolist() == list(range(len(sequence)))
        for n, node in enumerate(path):
            assert tree.attends[node].nonzero().flatten().tolist() == sorted(path[: n + 1])
