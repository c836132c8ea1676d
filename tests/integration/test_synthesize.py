"""What the teacher writes, by the stages themselves: conversations among other text."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from pipeline.corpus.artifact import Corpus
from tests import tiny
from tests.integration.conftest import ROOT, change_params, environment

TEMPLATE = (
    "{{ bos_token }}Be kind.{{ eos_token }}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
)


def written(desk: Path, model: Path, **knobs: object) -> tuple[str, Corpus]:
    """What synthesize says, and the corpus, of a model and the pipeline's knobs with some changes."""
    shutil.copy2(ROOT / "params.yaml", desk)
    shutil.copy2(ROOT / "versions.yaml", desk)
    small = {"sequences": 60, "held_out": 6, "length": 48, "batch": 7, "dtype": "float32"}
    fits = {
        "calibrate": {"sequences": 8},
        "analyze": {"sequences": 4, "sensitivity_sequences": 1},
        "prove": {"prompts": 6, "tokens": 8},
    }
    window = {"instructions": 0, "benchmarks": str(ROOT / "data/benchmarks"), "window": 64, "tasks": ["piqa"]}
    evaluate = {"references": {"long": 64, "dialogues": 0}, "evaluate": window}
    source = {
        "teacher": {"source": "path", "path": str(model), "sha256": ""},
        "export": {"formats": ["compressed-tensors"]},
    }
    change_params(desk, {**source, **fits, **evaluate, "synthesize": {**small, **knobs}})
    for stage in (["teacher", "--out", "teacher"], ["synthesize", "--teacher", "teacher", "--out", "corpus"]):
        command = [sys.executable, "-m", f"stages.{stage[0]}", *stage[1:], "--environment", "environment.json"]
        env = {**environment(), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=desk, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return done.stdout, Corpus.load(desk / "corpus")


def test_a_share_of_the_text_is_conversations(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    said, corpus = written(tmp_path, model, chat=0.5, stop_at_eos=True)
    assert "chat template" not in said
    opening = tokenizer("<s>Be kind.</s>user: ", add_special_tokens=False)["input_ids"]
    chats = (corpus.tokens[:, : len(opening)] == torch.tensor(opening)).all(dim=1)
    assert 15 < chats.sum() < 45
    assert json.loads((tmp_path / "corpus/manifest.json").read_text())["facts"]["chats"] == chats.sum()
    assert not corpus.prefix[chats].any()
    assert (corpus.sampled_from[chats] == len(opening)).all()
    assert (corpus.sampled_from[~chats] == corpus.prefix[~chats] + 1).all()
    for tokens, length, chat in zip(corpus.tokens, corpus.lengths, chats, strict=True):
        ends = (tokens[1:] == tokenizer.eos_token_id).nonzero().flatten() + 2
        passed = 2 if chat else 0  # the end of the system's words and of the user's
        assert length == (ends[passed] if len(ends) > passed else len(tokens))


def test_without_a_chat_template_all_text_begins_with_a_random_token(tmp_path: Path) -> None:
    said, corpus = written(tmp_path, tiny.save(tmp_path / "model"), chat=0.5)
    assert "the teacher has no chat template; all its text begins with a random token" in said
    assert (corpus.prefix > 0).all()
    assert json.loads((tmp_path / "corpus/manifest.json").read_text())["facts"]["chats"] == 0
