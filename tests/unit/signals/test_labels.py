"""Which tokens the loss under the signals counts, and what it takes where none was sampled."""

import torch
from torch import Tensor

from pipeline.corpus.artifact import Corpus
from pipeline.signals import labels
from tests import tiny


def corpus(tokens: Tensor, lengths: Tensor, sampled_from: list[int]) -> Corpus:
    return Corpus(tokens, lengths, torch.zeros(6, dtype=torch.int64), torch.tensor(sampled_from), 1)


def test_what_was_sampled_counts_and_nothing_else(tokens: Tensor, lengths: Tensor):
    whole = corpus(tokens, lengths, [4, 20, 1, 9, 1, 1])
    made = labels.text(tiny.llama(), whole, 4, 2)
    assert torch.equal(made.tokens, tokens[:4])
    assert torch.equal(made.counted, whole.sampled(4))
    assert made.predicted == 16 + 0 + 19 + 4
    parts = list(made.batches())
    assert torch.equal(torch.cat([part[2] for part in parts]), tokens[:4])
    assert len(parts) == 2


def test_without_any_labels_are_drawn_from_the_model(tokens: Tensor, lengths: Tensor):
    """As often as their probability: over 500 texts of one beginning, by Pearson's chi-square of 258 degrees."""
    one = tokens[:1, :4].expand(500, 4)
    full = torch.full((500,), 4)
    greedy = Corpus(one, full, torch.zeros_like(full), full, 0)
    made = labels.text(tiny.llama(), greedy, 500, 50)
    assert torch.equal(made.tokens, one)
    assert made.counted is None
    assert made.predicted == 3 * 500
    p = tiny.llama()(input_ids=one[:1]).logits.double().softmax(dim=-1)[0]
    for position in range(3):
        expected = 500 * p[position]
        drawn = made.labels[:, position + 1].bincount(minlength=259)
        assert 100 < ((drawn - expected).square() / expected).sum() < 500
    assert torch.equal(made.labels, labels.text(tiny.llama(), greedy, 500, 50).labels)
