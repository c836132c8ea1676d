"""Sampling against a float64 cumulative sum, and decoding against transformers' own generate and forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from pipeline.corpus import decoding, sampler
from pipeline.corpus.decode_attention import DECODE_ATTENTION
from pipeline.corpus.sampler import Streams, draw_streams, generate, sample
from pipeline.models import vocabulary
from tests import tiny
from tests.unit.corpus.draws import STARTS, inverted, random, uniforms
from tests.unit.corpus.openings import OPENING


@pytest.mark.parametrize("temperature", [1.0, 0.3, 3.0])
@pytest.mark.parametrize("vocabulary", [2, 255, 256, 257, 1000, 4096])
def test_a_token_is_where_the_cumulative_distribution_passes_the_uniform_number(vocabulary: int, temperature: float):
    logits, uniform = random(vocabulary, 500, vocabulary) * 3, uniforms(1, 500)
    expected, unsure = inverted(logits, uniform, temperature)
    tokens = sample(logits, uniform, temperature)
    assert torch.equal(tokens[~unsure], expected[~unsure])
    assert unsure.float().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_come_as_often_as_their_probability(dtype: torch.dtype):
    """Pearson's chi-square over 300 tokens, which span two blocks: mean 299, standard deviation 24."""
    logits = random(0, 1, 300).to(dtype)
    draws = 60_000
    tokens = sample(logits.expand(draws, -1), uniforms(7, draws))
    expected = torch.softmax(logits.double(), dim=1)[0] * draws
    assert expected.min() > 5
    chi_square = ((tokens.bincount(minlength=300) - expected).square() / expected).sum()
    assert 200 < chi_square < 400


def test_a_token_without_probability_is_never_drawn():
    """Not at the ends of the interval, not in blocks without any, and not in the padding behind the vocabulary."""
    logits = torch.full((4, 700), -torch.inf)
    logits[:, [10, 300, 301, 690]] = 0.0
    ends = torch.tensor([0.0, 2.0**-149, 1 - 2.0**-24, 0.5])
    assert sample(logits, ends).tolist() == [10, 10, 690, 301]
    many = sample(logits[:1].expand(5000, -1), uniforms(0, 5000))
    assert set(many.tolist()) == {10, 300, 301, 690}


def test_the_end_of_the_interval_stays_inside_the_block_that_was_chosen():
    """Float32 sums of a block may exceed its float64 ones; there is nothing to draw behind it."""
    logits = torch.cat([random(0, 5000, 256), torch.full((5000, 300), -torch.inf)], dim=1)
    assert sample(logits, torch.full((5000,), 1 - 2.0**-24)).max() < 256


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("strategy", ["hybrid", "sampled", "greedy"])
def test_logits_that_are_not_finite_are_refused_with_the_token(strategy: str, bad: float, monkeypatch):
    """Behind three tokens that are written without trouble."""
    streams = draw_streams(0, range(3), 9, STARTS, (5, 5))
    calls = iter(range(9))

    @contextmanager
    def failing(model: object, length: int) -> Iterator[decoding.Step]:
        yield lambda tokens: torch.full((3, 259), bad) if next(calls) == 3 else torch.zeros(3, 259)

    monkeypatch.setitem(decoding.WAYS, "failing", failing)
    with pytest.raises(ValueError, match=r"^token 5 of the sequences .* not finite; is the teacher sound\?$"):
        generate(tiny.llama(), streams, strategy, 1.0, lambda n: None, "failing")


def test_a_row_without_any_token_is_refused():
    with pytest.raises(ValueError, match="the logits are not finite"):
        sample(torch.full((2, 300), -torch.inf), torch.zeros(2))


def test_a_temperature_of_any_size_is_taken():
    logits = torch.tensor([[3.0, 1e30, 2.0]])
    assert sample(logits, torch.tensor([0.99]), 1e-30).tolist() == [1]


@pytest.mark.parametrize(
    ("strategy", "temperature", "expected"),
    [("hybrid", 1.0, 5), ("sampled", 1.0, 1), ("greedy", 1.0, 12), ("hybrid", 0.9, 12), ("sampled", 1.1, 12)],
)
def test_sampling_begins_behind_what_is_given_and_what_is_greedy(strategy: str, temperature: float, expected: int):
    streams = draw_streams(0, range(40), 12, STARTS, (4, 4), OPENING, 0.5)
    begins = sampler.sampled_from(streams, strategy, temperature)
    assert (begins[~streams.opened] == expected).all()
    assert (begins[streams.opened] == (12 if expected == 12 else len(OPENING))).all()


def test_where_sampling_begins_the_numbers_decide():
    """Other numbers leave what stands before it, and draw another token there."""
    streams = draw_streams(0, range(40), 12, STARTS, (3, 5), OPENING, 0.5)
    others = replace(streams, uniform=uniforms(5, 40, 12))
    ours, theirs = (generate(tiny.llama(), drawn, "hybrid", 1.0, lambda n: None) for drawn in (streams, others))
    begins = sampler.sampled_from(streams, "hybrid", 1.0)
    apart = ours != theirs
    assert not apart[torch.arange(12) < begins[:, None]].any()
    assert apart.gather(1, begins[:, None]).float().mean() > 0.8


def test_logits_of_any_size_are_sampled():
    logits = torch.tensor([[1e30, -1e30, 1e30], [-1e30, -1e30, -3e38]])
    assert sample(logits, torch.tensor([0.75, 0.25])).tolist() == [2, 0]


def test_the_stream_of_a_sequence_depends_on_seed_and_index_alone():
    whole = draw_streams(3, range(7), 11, STARTS, (3, 5))
    parts = [draw_streams(3, part, 11, STARTS, (3, 5)) for part in ([0, 1, 2], [3], [4, 5, 6])]
    for name in ("prompt", "opened", "prefix", "uniform"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    other = draw_streams(4, range(7), 11, STARTS, (3, 5))
    assert not (other.uniform == whole.uniform).any()
    assert len({tuple(row.tolist()) for row in whole.uniform}) == 7


def test_starts_prefixes_and_numbers_cover_their_ranges():
    drawn = draw_streams(0, range(2000), 4, STARTS[:50], (3, 5))
    assert set(drawn.prompt[:, 0].tolist()) == set(STARTS[:50])
    assert torch.allclose(drawn.prefix.bincount() / 2000, torch.tensor([0, 0, 0, 1, 1, 1]) / 3, atol=0.05)
    assert drawn.uniform.dtype == torch.float32
    assert 0 <= drawn.uniform.min() < 0.001
    assert 0.999 < drawn.uniform.max() < 1


def test_a_start_token_is_never_special():
    tokenizer = tiny.tokenizer()
    starts = sampler.allowed_starts(len(tokenizer), vocabulary.special_tokens(tokenizer))
    assert starts == STARTS
    drawn = draw_streams(0, range(1000), 2, starts, (1, 1)).prompt[:, 0]
    assert not set(drawn.tolist()) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("prefix", [0, 4, 11])
@pytest.mark.parametrize("strategy", ["greedy", "sampled", "hybrid"])
def test_every_token_is_the_one_that_a_full_forward_calls_for(strategy: str, prefix: int):
    streams = draw_streams(0, range(6), 12, STARTS, (prefix, prefix))
    tokens = generate(tiny.llama(), streams, strategy, 0.8, lambda n: None)
    logits = tiny.llama()(input_ids=tokens).logits
    assert torch.equal(tokens[:, 0], streams.prompt[:, 0])
    for position in range(1, 12):
        expected, unsure = inverted(logits[:, position - 1], streams.uniform[:, position], 0.8)
        if strategy == "greedy" or (strategy == "hybrid" and position <= prefix):
            expected, unsure = logits[:, position - 1].argmax(dim=1), torch.zeros(6, dtype=torch.bool)
        assert torch.equal(tokens[~unsure, position], expected[~unsure])


def test_each_sequence_has_a_greedy_prefix_of_its_own():
    streams = draw_streams(0, range(12), 8, STARTS, (3, 5))
    assert len(set(streams.prefix.tolist())) > 1
    hybrid, greedy, sampled = (
        generate(tiny.llama(), streams, s, 5.0, lambda n: None) for s in ("hybrid", "greedy", "sampled")
    )
    for row, prefix in enumerate(streams.prefix.tolist()):
        assert torch.equal(hybrid[row, : prefix + 1], greedy[row, : prefix + 1])
    assert not torch.equal(hybrid, greedy)
    assert not torch.equal(hybrid, sampled)


def test_greedy_decoding_is_that_of_transformers():
    streams = draw_streams(0, range(5), 24, STARTS, (3, 5))
    expected = tiny.llama().generate(
        streams.prompt, attention_mask=torch.ones(5, 1), max_new_tokens=23, do_sample=False, eos_token_id=None
    )
    assert torch.equal(generate(tiny.llama(), streams, "greedy", 1.0, lambda n: None), expected)


def test_the_batch_size_does_not_change_what_is_written():
    streams = draw_streams(0, range(6), 20, STARTS, (3, 5))
    whole = generate(tiny.llama(), streams, "hybrid", 1.0, lambda n: None)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6)):
        part = Streams(streams.prompt[rows], streams.opened[rows], streams.prefix[rows], streams.uniform[rows])
        assert torch.equal(generate(tiny.llama(), part, "hybrid", 1.0, lambda n: None), whole[rows])


def test_progress_counts_every_token_once():
    counts: list[int] = []
    generate(tiny.llama(), draw_streams(0, range(3), 9, STARTS, (3, 5)), "sampled", 1.0, counts.append)
    assert sum(counts) == 3 * 9


@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_the_model_gets_its_own_attention_back(before: str):
    """After the last token and after an interruption."""
    model, streams = tiny.llama(), draw_streams(0, range(2), 5, STARTS, (3, 5))
    model.set_attn_implementation(before)
    used: list[str] = []
    generate(model, streams, "greedy", 1.0, lambda n: used.append(model.config._attn_implementation))
    assert set(used) == {DECODE_ATTENTION}
    assert model.config._attn_implementation == before

    def interrupt(written: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, streams, "greedy", 1.0, interrupt)
    assert model.config._attn_implementation == before


def test_what_was_written_is_scored_as_by_a_model_that_never_wrote():
    model, streams = tiny.llama(), draw_streams(0, range(2), 5, STARTS, (3, 5))
    tokens = generate(model, streams, "sampled", 1.0, lambda n: None)
    assert torch.equal(model(input_ids=tokens).logits, tiny.llama()(input_ids=tokens).logits)


def test_valid_lengths_end_with_the_first_end_token():
    tokens = torch.tensor([[5, 6, 2, 7, 2], [2, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5, 4, 2, 2, 2], [5, 6, 7, 8, 2]])
    assert sampler.valid_lengths(tokens, [2]).tolist() == [3, 5, 5, 3, 5]
    assert sampler.valid_lengths(tokens, [2, 4, 8]).tolist() == [3, 4, 4, 2, 4]
    assert sampler.valid_lengths(tokens, []).tolist() == [5] * 5
    assert sampler.valid_lengths(tokens, [2], torch.tensor([1, 0, 5, 2, 0])).tolist() == [5, 5, 5, 5, 5]
    assert sampler.valid_lengths(tokens, [2, 4, 8], torch.tensor([0, 1, 0, 1, 1])).tolist() == [3, 5, 4, 3, 5]
