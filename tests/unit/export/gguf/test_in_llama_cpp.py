"""What llama.cpp itself makes of an exported file, beside the model that was quantized."""

from pathlib import Path

import pytest
import torch
import xllamacpp
from torch import Tensor

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.calibration.rotation import rotate
from pipeline.export.formats import export
from pipeline.export.gguf import model as gguf_model
from pipeline.knobs.scheme import from_short
from tests import tiny
from tests.families import FAMILIES, family

WRITTEN = [name for name, (kind, _) in FAMILIES.items() if kind.model_type in gguf_model.ARCHITECTURES]
CLOSE = 2e-3  # nats: llama.cpp quantizes the inputs to 8 bits


def log_probabilities(file: Path, prompt: list[int], vocabulary: int) -> Tensor:
    """Of the token after a prompt, before anything is sampled: float64 [vocabulary]."""
    knobs = xllamacpp.CommonParams()
    knobs.model.path, knobs.n_ctx, knobs.warmup = str(file), 64, False
    knobs.cpuparams.n_threads = 1
    knobs.verbosity = 0
    letter = tiny.merging_tokenizer().convert_tokens_to_ids("a")  # is taken, since of half a character nothing is told
    asked = {"prompt": prompt, "n_predict": 1, "logit_bias": [[letter, 1000.0]]}
    answer = xllamacpp.Server(knobs).handle_completions({**asked, "logprobs": vocabulary})
    (position,) = answer["choices"][0]["logprobs"]["content"]
    values = torch.full((vocabulary,), -torch.inf, dtype=torch.float64)
    for token in position["top_logprobs"]:
        values[token["id"]] = token["logprob"]
    return values


@pytest.mark.parametrize("scheme", ["W4E8H6", "W8E5H4"])
@pytest.mark.parametrize(("name", "turned"), [*((name, False) for name in WRITTEN), ("llama", True), ("qwen3", True)])
def test_it_predicts_what_the_quantized_model_predicts(
    name: str, turned: bool, scheme: str, tokens: Tensor, valid: Tensor, tmp_path: Path
):
    model = rotate(family(name), 0) if turned else family(name)
    options = Options("mse", {}, batch=6, measure=False)
    start = calibrate(model, tokens, valid, from_short(scheme), options, None, lambda: None).model
    family(name).save_pretrained(tmp_path / "teacher")
    tiny.save_tokenizer(tiny.merging_tokenizer(), tmp_path / "teacher")
    (tmp_path / "out").mkdir()
    export(start, tmp_path / "teacher", "gguf", tmp_path / "out")
    reference = family(name)
    start.put_into(reference)
    prompt = tokens[:1, : min(20, gguf_model.context(reference.config) - 1)]
    expected = reference(input_ids=prompt).logits[0, -1].double().log_softmax(dim=-1)
    theirs = log_probabilities(tmp_path / "out/model.gguf", prompt[0].tolist(), 259)
    assert theirs.isfinite().all()
    kl = float((expected.exp() * (expected - theirs)).sum())
    assert 0 <= kl < CLOSE
