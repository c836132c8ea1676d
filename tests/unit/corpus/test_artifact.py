from pathlib import Path

import pytest
import torch

from pipeline.artifacts import contract
from pipeline.corpus.artifact import FILE, Corpus, valid_mask


@pytest.fixture
def corpus() -> Corpus:
    tokens = torch.randint(0, 259, (7, 5), generator=torch.Generator().manual_seed(0))
    return Corpus(
        tokens, torch.tensor([5, 3, 5, 2, 5, 4, 5]), torch.arange(7), torch.tensor([4, 1, 5, 1, 2, 3, 1]), held_out=2
    )


def test_a_corpus_reads_back_as_it_was_written(corpus: Corpus, tmp_path: Path):
    corpus.save(tmp_path / "corpus", {"seed": 3})
    loaded = Corpus.load(tmp_path / "corpus")
    for name in ("tokens", "lengths", "prefix", "sampled_from"):
        assert getattr(loaded, name).dtype == torch.int64
        assert torch.equal(getattr(loaded, name), getattr(corpus, name))
    assert loaded.held_out == 2
    facts = contract.reading(tmp_path / "corpus", contract.CORPUS)
    assert facts == {"seed": 3, "sequences": 7, "length": 5, "held_out": 2}


def test_the_splits_are_disjoint_and_whole(corpus: Corpus):
    train, test = corpus.train(), corpus.test()
    assert [len(part) for part in (*train, *test)] == [5, 5, 2, 2]
    assert torch.equal(torch.cat([train[0], test[0]]), corpus.tokens)
    assert torch.equal(torch.cat([train[1], test[1]]), corpus.lengths)


def test_fewer_training_sequences_are_the_first_ones(corpus: Corpus):
    assert torch.equal(corpus.train(3)[0], corpus.tokens[:3])


def test_held_out_sequences_are_never_given_for_training(corpus: Corpus):
    with pytest.raises(ValueError, match=r"6 sequences are asked for, but the corpus has 5 .*synthesize\.sequences"):
        corpus.train(6)


def test_what_was_sampled_begins_where_the_corpus_says_and_ends_with_the_text(corpus: Corpus):
    expected = [[0, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
    assert corpus.sampled().int().tolist() == expected
    assert corpus.sampled(2).int().tolist() == expected[:2]


def test_a_changed_corpus_is_refused(corpus: Corpus, tmp_path: Path):
    corpus.save(tmp_path / "corpus", {})
    file = tmp_path / "corpus" / FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="its content has changed"):
        Corpus.load(tmp_path / "corpus")


def test_the_mask_covers_each_length():
    assert valid_mask(torch.tensor([1, 3, 4]), 4).int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
