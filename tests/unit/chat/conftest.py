"""Tiny exported folders to talk to: one that llama.cpp runs, one that onnxruntime-genai runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from pipeline.artifacts import contract
from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.export.formats import export
from pipeline.knobs.scheme import from_short
from tests import tiny

TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
REFUSING = (
    "{% for message in messages %}{% if message.content == 'Thanks' %}{{ raise_exception('no thanks') }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)
CONTEXT = 512  # of the tiny model
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def gguf_folder(where: Path, template: str | None, tokens: Tensor, valid: Tensor) -> Path:
    """The tiny model, rounded, with or without a chat template."""
    tokenizer = tiny.merging_tokenizer()
    tokenizer.chat_template = template
    tiny.llama().save_pretrained(where / "teacher")
    tokenizer.save_pretrained(where / "teacher")
    options = Options("rtn", {}, batch=6, measure=False)
    start = calibrate(tiny.llama(), tokens, valid, from_short("W8E8H8"), options, None, lambda: None).model
    with contract.writing(where / "gguf", contract.INT4) as draft:
        draft.facts = export(start, where / "teacher", "gguf", draft.path)
    return where / "gguf"


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory, tokens: Tensor, valid: Tensor) -> Path:
    return gguf_folder(tmp_path_factory.mktemp("chat"), TEMPLATE, tokens, valid)


@pytest.fixture(scope="session")
def gguf_without_template(tmp_path_factory: pytest.TempPathFactory, tokens: Tensor, valid: Tensor) -> Path:
    return gguf_folder(tmp_path_factory.mktemp("plain"), None, tokens, valid)


def said_after(ids: list[int], count: int) -> str:
    """What the model of `onnx_folder` says: each letter is told by the sum of all tokens before it."""
    ids, known, text = list(ids), tiny.merging_tokenizer().get_vocab(), ""
    for _ in range(count):
        text += LETTERS[sum(ids) % len(LETTERS)]
        ids.append(known[text[-1]])
    return text


def onnx_folder(where: Path, template: str | None) -> Path:
    """A decoder whose cache holds the tokens themselves, and whose next letter is told by their sum: so what it says is
    known, and is another where a token of the prompt is lost, or one that was taken back stays."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    tokenizer = tiny.merging_tokenizer()
    tokenizer.chat_template = template
    known = tokenizer.get_vocab()
    table = np.zeros((len(LETTERS), len(known)), dtype=np.float32)
    for row, letter in enumerate(LETTERS):
        table[row, known[letter]] = 1
    constants = {
        "one_two": np.array([1, 2]),
        "letters": np.array(len(LETTERS)),
        "table": table,
        "zero": np.zeros(1, dtype=np.float32),
        "first": np.array([1, 1, 1]),
    }
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "heads_axes"], ["new"]),  # (1, 1, sequence, 1)
        helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
        helper.make_node("Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2),
        helper.make_node("ReduceSum", ["present.0.key"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mod", ["whole", "letters"], ["letter"]),
        helper.make_node("Gather", ["table", "letter"], ["row"]),
        helper.make_node("Shape", ["input_ids"], ["batch_sequence"]),
        helper.make_node("Concat", ["batch_sequence", "one"], ["repeats"], axis=0),
        helper.make_node("Unsqueeze", ["row", "row_axes"], ["row3"]),
        helper.make_node("Tile", ["row3", "repeats"], ["logits"]),
    ]
    constants |= {"heads_axes": np.array([1, 3]), "row_axes": np.array([0, 1]), "one": np.array([1])}
    used = {name for node in nodes for name in node.input}
    float32, cache = TensorProto.FLOAT, [1, 1, "past", 1]
    graph = helper.make_graph(
        nodes,
        "sums",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "sequence"]),
            helper.make_tensor_value_info("past_key_values.0.key", float32, cache),
            helper.make_tensor_value_info("past_key_values.0.value", float32, cache),
        ],
        [
            helper.make_tensor_value_info("logits", float32, [1, "sequence", len(known)]),
            helper.make_tensor_value_info("present.0.key", float32, [1, 1, "total_sequence", 1]),
            helper.make_tensor_value_info("present.0.value", float32, [1, 1, "total_sequence", 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with contract.writing(where / "onnx", contract.INT4) as draft:
        onnx.save(model, draft.path / "model.onnx")
        tokenizer.save_pretrained(draft.path)
        (draft.path / "genai_config.json").write_text(json.dumps(genai_config(len(known))))
        draft.facts = {"format": "onnx"}
    return where / "onnx"


def genai_config(vocabulary: int) -> dict:
    """As onnxruntime-genai's own builder writes it, of one layer with one head of one channel."""
    names = {"input_ids": "input_ids"}
    names |= {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    outputs = {"logits": "logits", **{f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": 1,
        "hidden_size": 1,
        "inputs": names,
        "outputs": outputs,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
    }
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": vocabulary}
    model = {**tokens, "context_length": CONTEXT, "decoder": decoder, "type": "llama"}
    return {"model": model, "search": {"max_length": CONTEXT, "past_present_share_buffer": False}}


@pytest.fixture(scope="session")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_folder(tmp_path_factory.mktemp("chat"), TEMPLATE)


@pytest.fixture(scope="session")
def onnx_without_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_folder(tmp_path_factory.mktemp("plain"), None)
