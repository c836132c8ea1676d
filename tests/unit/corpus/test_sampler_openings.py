"""Sequences that begin as a conversation does."""

import pytest
import torch

from pipeline.corpus.sampler import draw_streams, generate
from tests import tiny
from tests.unit.corpus.draws import STARTS, inverted
from tests.unit.corpus.openings import OPENING


def test_a_share_begins_with_the_opening_and_the_others_are_as_without():
    plain, mixed = (draw_streams(0, range(2000), 8, STARTS, (3, 5), OPENING, share) for share in (0.0, 0.2))
    assert not plain.opened.any()
    assert 0.17 < mixed.opened.float().mean() < 0.23
    assert (mixed.prompt[mixed.opened] == torch.tensor(OPENING)).all()
    assert not mixed.prefix[mixed.opened].any()
    for name in ("prompt", "prefix", "uniform"):
        assert torch.equal(getattr(mixed, name)[~mixed.opened], getattr(plain, name)[~mixed.opened])
    more = draw_streams(0, range(2000), 8, STARTS, (3, 5), OPENING, 0.5)
    assert more.opened[mixed.opened].all()


def test_an_opening_that_leaves_no_place_is_refused():
    with pytest.raises(ValueError, match=r"synthesize.length: 6 tokens leave no place behind the 6 that open"):
        draw_streams(0, range(2), 6, STARTS, (3, 5), OPENING, 0.2)
    draw_streams(0, range(2), 6, STARTS, (3, 5), OPENING, 0.0)


@pytest.mark.parametrize("strategy", ["hybrid", "sampled"])
def test_what_opens_a_conversation_is_written_and_read(strategy: str):
    """All behind it is what a full forward calls for, at the number that was drawn for the position."""
    streams = draw_streams(0, range(40), 12, STARTS, (3, 5), OPENING, 0.5)
    tokens = generate(tiny.llama(), streams, strategy, 1.0, lambda n: None)
    assert (tokens[streams.opened, : len(OPENING)] == torch.tensor(OPENING)).all()
    logits = tiny.llama()(input_ids=tokens).logits[streams.opened]
    for position in range(len(OPENING), 12):
        expected, unsure = inverted(logits[:, position - 1], streams.uniform[streams.opened, position])
        assert torch.equal(tokens[streams.opened, position][~unsure], expected[~unsure])
    alone = generate(tiny.llama(), draw_streams(0, range(40), 12, STARTS, (3, 5)), strategy, 1.0, lambda n: None)
    assert torch.equal(tokens[~streams.opened], alone[~streams.opened])
