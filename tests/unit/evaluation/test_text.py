import hashlib
import json
import math
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation import items, text
from tests import tiny


def write(folder: Path, *lines: str) -> Path:
    (folder / "prose.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_perplexity_is_that_of_transformers_own_loss(tokens: Tensor):
    model = tiny.llama()
    losses = np.array([model(input_ids=window[None], labels=window[None]).loss.item() for window in tokens])
    calls: list[None] = []
    scores, rows = text.perplexity(model, tokens, lambda: calls.append(None))
    assert scores["log_perplexity"] == pytest.approx(losses.mean(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    error = losses.std(ddof=1) / math.sqrt(len(losses))
    assert scores["perplexity.stderr"] == pytest.approx(math.exp(losses.mean()) * error, rel=1e-4)
    assert len(calls) == len(tokens)
    documents = items.documents(rows)
    assert documents["value"].tolist() == pytest.approx(losses, rel=1e-5)
    assert [*documents["document"]] == [*range(len(tokens))]
    assert {*documents["tokens"]} == {tokens.shape[1] - 1}
    assert documents["hash"].nunique() == len(tokens)


def test_perplexity_is_the_inverse_geometric_mean_of_the_probabilities(tokens: Tensor):
    """Straight from the definition, in float64; the first token of a window is context only."""
    model = tiny.llama().double()
    probabilities = torch.softmax(model(input_ids=tokens).logits, dim=-1)
    target_probabilities = probabilities[:, :-1].gather(2, tokens[:, 1:, None]).numpy()
    expected = target_probabilities.prod(axis=(1, 2)).prod() ** (-1 / target_probabilities.size)
    assert text.perplexity(model, tokens, lambda: None)[0]["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabulary_for_its_perplexity(tokens: Tensor):
    model = tiny.llama(tie=False)
    model.lm_head.weight.zero_()
    scores, _ = text.perplexity(model, tokens, lambda: None)
    assert scores["perplexity"] == pytest.approx(259, rel=1e-5)
    assert scores["perplexity.stderr"] == pytest.approx(0, abs=1e-3)


def test_windows_are_the_text_cut_from_its_start():
    words = "".join(chr(97 + i % 26) for i in range(100))
    windows = text.windows(words, tiny.tokenizer(), 3, 7)
    assert (windows.shape, windows.dtype) == ((3, 7), torch.int64)
    assert tiny.tokenizer().decode(windows.flatten()) == words[:21]


def test_a_text_that_is_too_short_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="asks for 21 tokens, the text has 20"):
        text.windows("x" * 20, tiny.tokenizer(), 3, 7)


def test_pydoc_is_every_topic_of_the_interpreter_in_order():
    prose = text.read_text("pydoc", "/nowhere")
    assert len(topics) > 50
    assert prose == "\n\n".join(topics[name] for name in sorted(topics))
    assert text.text_sha256(prose) == hashlib.sha256(prose.encode("utf-8")).hexdigest()


def test_the_order_of_the_topics_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pydoc_data.topics.topics", {"b": "second", "a": "first"})
    assert text.read_text("pydoc", "/nowhere") == "first\n\nsecond"


def test_a_text_of_the_folder_is_its_pages_joined_by_blank_lines(tmp_path: Path):
    lines = [
        json.dumps({"page": "one\ntwo"}),
        json.dumps({"text": "thrée"}, ensure_ascii=False),
        '{"text": "x", "page": "y"}',
    ]
    assert text.read_text("prose", write(tmp_path, *lines)) == "one\ntwo\n\nthrée\n\ny"


@pytest.mark.parametrize(
    "line", ["{", "", "[1]", '"page"', "3", "null", '{"body": "x"}', '{"page": 5}', '{"text": null}']
)
def test_a_malformed_line_is_named_with_file_and_number(tmp_path: Path, line: str):
    write(tmp_path, '{"page": "fine"}', line, '{"page": "fine"}')
    with pytest.raises(ValueError, match=r"prose\.jsonl, line 2: expected an object with a 'page' or a 'text'"):
        text.read_text("prose", tmp_path)


def test_only_a_newline_ends_a_line_of_json(tmp_path: Path):
    """JSON allows Unicode's other line ends unescaped inside strings."""
    page = "one\u2028two\x85three"
    write(tmp_path, json.dumps({"page": page}, ensure_ascii=False))
    assert text.read_text("prose", tmp_path) == page


def test_a_missing_text_is_answered_with_what_may_stand_there(tmp_path: Path):
    with pytest.raises(ValueError, match=r"evaluate\.text: .*prose\.jsonl does not exist; .* or 'pydoc'"):
        text.read_text("prose", tmp_path)
