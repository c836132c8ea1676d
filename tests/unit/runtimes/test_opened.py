"""What each runtime makes of the tiny model's exports, beside transformers' own functions."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.models import saved
from pipeline.runtimes import hugging_face, llama_cpp
from pipeline.runtimes.folder_tokenizer import rendered
from pipeline.runtimes.opened import Asked
from pipeline.runtimes.references import Text
from pipeline.runtimes.table import RUNTIMES
from tests import tiny
from tests.unit.export.quantized import quantized
from tests.unit.runtimes.conftest import OPENED, Exported

ASKED = Asked(64, 3, 1)
TEMPLATE = "{% for m in messages %}<s>{{ m.role + '\n' + m.content }}</s>{% endfor %}{{ '<s>assistant\n' }}"


@pytest.mark.parametrize(("name", "format_name"), OPENED)
def test_a_runtime_predicts_and_continues_as_the_quantized_model_does(
    name: str, format_name: str, exported: Exported, asked: Text
):
    reference = tiny.llama()
    quantized("blocks").put_into(reference)()
    opened = RUNTIMES[name].open(exported(format_name), ASKED)
    try:
        assert (opened.vocabulary, opened.context) == (259, None if "float" in name or name == "onnxruntime" else 512)
        predictions = [*opened.predictions(asked.tokens)]
        assert len(predictions) == len(asked.tokens)
        for sequence, predicted in zip(asked.tokens, predictions, strict=True):
            expected = reference(input_ids=sequence[None]).logits[0].log_softmax(dim=-1)[predicted.positions]
            values = predicted.values
            if predicted.ids is None:
                values = values.log_softmax(dim=-1)
            else:
                expected = expected.gather(1, predicted.ids)
                assert bool((values[:, :-1] >= values[:, 1:]).all())
            assert set(range(len(sequence) - 1)) <= set(predicted.positions.tolist())
            assert float((expected.exp() * (expected - values)).sum(dim=-1).mean().abs()) < 2e-3
        theirs = opened.continuations(asked.prompts, 12)
        after = reference(input_ids=asked.prompts).logits[:, -1].log_softmax(dim=-1)
        for likely, text in zip(after, theirs, strict=True):
            assert float(likely.max() - likely[text[0] if text else 2]) < 0.1
        if RUNTIMES[name].exact:
            plain = tiny.llama()
            quantized("blocks").put_into(plain)()
            whole = plain.generate(asked.prompts, do_sample=False, max_new_tokens=12, pad_token_id=0)
            for ours, text in zip(whole[:, 16:].tolist(), theirs, strict=True):
                end = ours.index(2) if 2 in ours else 12
                assert text[:end] == ours[:end]
        speed = opened.speed(asked.tokens[0], 12)
        assert min(speed) > 0
    finally:
        opened.close()


@pytest.mark.parametrize(("name", "format_name"), OPENED)
def test_a_runtimes_tokenizer_is_the_exports(name: str, format_name: str, exported: Exported):
    opened = RUNTIMES[name].open(exported(format_name), ASKED)
    for text in ("to the t", "héé 🙂\n\n  x", "<s>a</s>"):
        assert opened.ids(text) == tiny.merging_tokenizer()(text)["input_ids"]
    opened.close()


def test_llama_cpp_renders_the_chat_template_that_the_file_has(tmp_path: Path):
    from pipeline.export.formats import export

    tiny.save_whole(tmp_path / "teacher")
    tokenizer = tiny.merging_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "teacher")
    (tmp_path / "out").mkdir()
    export(quantized("blocks"), tmp_path / "teacher", "gguf", tmp_path / "out")
    opened = llama_cpp.open_export(tmp_path / "out", ASKED)
    messages = [{"role": "user", "content": "1 + 1"}]
    assert opened.chat(messages) == rendered(tokenizer, messages) == "<s>user\n1 + 1</s><s>assistant\n"
    opened.close()


def test_a_continuation_is_greedy_whatever_the_models_own_config_asks_for():
    model = tiny.llama()
    prompts = torch.arange(3, 19)[None]
    plain = hugging_face.greedy(model, prompts, 8)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.eos_token_id = plain[0][0]
    assert hugging_face.greedy(model, prompts, 8) == plain
    assert model.generation_config.repetition_penalty == 50.0
    for step in range(8):
        text = torch.cat([prompts, torch.tensor([plain[0][:step]], dtype=torch.int64)], dim=1)
        assert int(model(input_ids=text).logits[0, -1].argmax()) == plain[0][step]


@pytest.mark.parametrize(("name", "format_name"), OPENED)
def test_a_folder_that_is_no_export_and_a_torn_file_are_refused_in_a_line(
    name: str, format_name: str, exported: Exported, tmp_path: Path
):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as empty:
        RUNTIMES[name].open(tmp_path, ASKED)
    torn = shutil.copytree(exported(format_name), tmp_path / "torn")
    for kind in ("*.safetensors", "*.gguf", "*.onnx.data", "*.pte"):
        for file in torn.glob(kind):
            file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(ValueError, match="truncated") as cut:
        RUNTIMES[name].open(torn, ASKED)
    assert not any("\n" in str(error.value) for error in (empty, cut))


def test_what_the_server_refuses_is_told_in_its_words(exported: Exported):
    opened = llama_cpp.open_export(exported("gguf"), Asked(64, 1, 1))
    with pytest.raises(ValueError, match=r"llama.cpp refuses /completion: .*context"):
        opened.continuations(torch.full((1, 600), 5), 1)
    opened.close()


def test_an_export_in_transformers_is_float32_and_whole(exported: Exported):
    opened = hugging_face.open_export(exported("compressed-tensors"), ASKED)
    assert isinstance(opened, hugging_face.InTransformers)
    assert opened.model.dtype == torch.float32
    assert type(opened.tokenizer) is type(saved.load_tokenizer(exported("compressed-tensors")))
    opened.close()
