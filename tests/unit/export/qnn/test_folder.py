"""What is refused for a Hexagon NPU, what a folder for one must hold, and the compiler's own words."""

import importlib.util
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor

from pipeline.artifacts.contract import read_json
from pipeline.export import extras, refusals
from pipeline.export.formats import export
from pipeline.export.qnn import compiler as qnn_compiler
from pipeline.export.qnn import folder as qnn_folder
from pipeline.export.qnn import ranges as qnn_ranges
from pipeline.export.sizes import stored_bytes
from pipeline.knobs.scheme import Activations, KVCache, Scheme, Weights, from_short
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel
from tests import tiny
from tests.families import family
from tests.unit.export.qnn.folders import rounded, target

DEFAULT = from_short("W4A16E8H6")
UP, DOWN, HEAD = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj", "lm_head"
STATIC = Activations(16)
needs_the_compiler = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason="onnxruntime-qnn is not installed"
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler looks installed, and writes what its contexts look like from outside."""
    monkeypatch.setattr(extras, "version", lambda package: "2.7.0")

    def compiled(graphs: Path, out: Path, architecture: str, shared: bool) -> None:
        for name in qnn_compiler.GRAPHS:
            binary = "chunk.bin" if shared else f"{name}.bin"
            (out / binary).write_bytes(b"compiled")
            node = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", ep_cache_context=binary)
            onnx.save(helper.make_model(helper.make_graph([node], "g", [], [])), out / name)

    monkeypatch.setattr(qnn_compiler, "compile_graphs", compiled)


@pytest.fixture
def quantized(tokens: Tensor, valid: Tensor) -> QuantizedModel:
    return rounded(family("llama"), DEFAULT, tokens, valid)


@pytest.fixture
def folder(installed: None, quantized: QuantizedModel, tokens: Tensor, tmp_path: Path) -> Path:
    """An export whose contexts are stubs."""
    family("llama").save_pretrained(tmp_path / "teacher")
    tiny.merging_tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "out").mkdir()
    export(quantized, tmp_path / "teacher", "qnn", tmp_path / "out", target=target(tokens))
    return tmp_path / "out"


@pytest.mark.usefixtures("installed")
def test_every_scheme_that_does_not_fit_is_told_the_nearest_that_does():
    grids = {UP: Weights(4, symmetric=False, group=16), DOWN: Weights(8), HEAD: Weights(6, group=16)}
    inputs = {UP: Activations(8), "model.layers.0.self_attn.v_proj": STATIC}
    signals = refusals.Signals(inputs, KVCache(8))
    assert list(refusals.problems("qnn", family("llama"), tiny.tokenizer(), grids, signals)) == [
        "model.layers.*.mlp.up_proj: its weight is asymmetric; take a symmetric one",
        "model.layers.*.mlp.up_proj: its weight has groups of 16; take group 0, a scale an output channel",
        "model.layers.*.mlp.up_proj: its input is static, of 8 bits; take static activations of 16 bits",
        "model.layers.*.mlp.down_proj: its input is float; take static activations of 16 bits",
        "model.layers.*.self_attn.v_proj: its weight is float and its input is not; take activations of 0 bits, or a "
        "weight of 4 or 8",
        "the KV cache has 8 bits, and is float16 on the NPU; take 0, float",
    ]
    dynamic = refusals.Signals({UP: Activations(16, dynamic=True)})
    (problem,) = refusals.problems("qnn", family("llama"), tiny.tokenizer(), {UP: Weights(4)}, dynamic)
    assert problem.endswith("its input is dynamic, of 16 bits; take static activations of 16 bits")
    (problem,) = refusals.problems("qnn", family("gemma"), tiny.tokenizer(), {})
    assert problem.startswith("gemma models are not written for ONNX")
    fits = refusals.Signals({UP: Activations(16, symmetric=False)})
    assert not list(refusals.problems("qnn", family("qwen3"), tiny.tokenizer(), {UP: Weights(3)}, fits))


def test_a_compiler_that_is_not_installed_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch):
    def absent(package: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(extras, "version", absent)
    (problem,) = refusals.problems("qnn", family("llama"), tiny.tokenizer(), {})
    assert problem.startswith("onnxruntime-qnn, which compiles it, is not installed: `pip install --constraint")
    with pytest.raises(ValueError, match=r"by onnxruntime-qnn, which is not installed: `pip install .* '.\[qnn\]'`$"):
        qnn_compiler.compile_graphs(Path(), Path(), "v75", True)


@pytest.mark.usefixtures("installed")
def test_a_model_that_does_not_fit_is_refused_with_all_its_reasons_before_any_work(
    tokens: Tensor, valid: Tensor, tmp_path: Path
):
    scheme = Scheme(Weights(4, group=16), Activations(8, dynamic=True), KVCache(8))
    quantized = rounded(family("llama"), scheme, tokens, valid)
    step = quantized.steps[UP]
    quantized.steps[UP] = Step(step.scale.clone().index_fill_(0, torch.tensor([3]), -0.5), step.zero)
    with pytest.raises(ValueError, match="qnn cannot hold this model") as caught:
        qnn_folder.write(quantized, family("llama"), tmp_path, tmp_path, target(tokens, context=65))
    text = str(caught.value)
    assert "export.qnn_context: 65 tokens are more than the 64 of the model's context; lower it" in text
    assert "model.layers.*.mlp.up_proj: its weight has scales that are not above zero" in text
    assert text.count("its weight has groups of 16") == text.count("its input is dynamic, of 8 bits") == 7
    assert "the KV cache has 8 bits" in text
    assert not list(tmp_path.iterdir())


def test_a_folder_tells_what_it_is_for_and_its_size_is_what_a_device_loads(folder: Path, quantized: QuantizedModel):
    facts = read_json(folder / "qnn.json")
    assert facts == {
        "architecture": "v75",
        "chunk": 8,
        "context": 24,
        "onnxruntime-qnn": "2.7.0",
        "shared": True,
        "vocabulary": 259,
    }
    qnn_folder.check(quantized, family("llama"), folder)
    loaded = {"embedding.onnx", "embedding.onnx.data", "head.onnx", "head.onnx.data", "chunk.onnx", "token.onnx"}
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    assert stored_bytes(folder) == sum(sizes[name] for name in loaded) + len(b"compiled")


@pytest.mark.parametrize("name", ["chunk.bin", "token.onnx", "qnn.json", "graphs/token.onnx", "head.onnx"])
def test_a_missing_file_is_named(name: str, folder: Path, quantized: QuantizedModel):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"is no whole export: it lacks {Path(name).name}"):
        qnn_folder.check(quantized, family("llama"), folder)


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("graphs/chunk.onnx", f"{UP}.weight"),
        ("graphs/chunk.onnx", f"{DOWN}.weight_scale"),
        ("graphs/token.onnx", f"{DOWN}.weight_scale"),
        ("graphs/token.onnx", "model.norm.weight"),
        ("embedding.onnx", "model.embed_tokens.weight"),
        ("head.onnx", "lm_head.high.weight"),
    ],
)
def test_a_changed_tensor_is_named(file: str, tensor: str, folder: Path, quantized: QuantizedModel):
    model = onnx.load(folder / file, load_external_data=False)
    (changed,) = (proto for proto in model.graph.initializer if proto.name == tensor)
    where = {entry.key: entry.value for entry in changed.external_data}
    if where:
        data = (folder / file).with_name(where["location"])
        content = bytearray(data.read_bytes())
        content[int(where["offset"]) + 1] ^= 1
        data.write_bytes(content)
    else:
        changed.raw_data = bytes([*changed.raw_data[:1], changed.raw_data[1] ^ 1, *changed.raw_data[2:]])
        onnx.save(model, folder / file)
    with pytest.raises(ValueError, match=r"are not those that were written|different tensors under one name") as caught:
        qnn_folder.check(quantized, family("llama"), folder)
    assert tensor.replace(".high", "").rpartition(".weight")[0] in str(caught.value)


def test_ranges_are_what_the_products_reach(quantized: QuantizedModel, tokens: Tensor):
    ranges = qnn_ranges.observe(family("llama"), quantized, tokens)
    model, reached = family("llama"), dict[str, float]()
    quantized.put_into(model)
    for name in quantized.inputs:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: reached.update(
                {name: max(reached.get(name, 0.0), float((args[0] @ module.weight.T).abs().max()))}
            )
        )
    model(input_ids=tokens)
    assert ranges.outputs.keys() == reached.keys()
    for name, most in reached.items():
        assert ranges.outputs[name] == pytest.approx(most, rel=1e-4)
        (step,) = ranges.steps(name)
        assert float(step.scale) == pytest.approx(2 * most / 32767, rel=1e-4)
    assert ranges.beyond == {}


@needs_the_compiler
def test_what_does_not_compile_is_told_in_a_line(tmp_path: Path):
    shapes = (("x", [4, 4]), ("y", []))
    square, number = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes)
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"])], "g", [square], [number])
    for name in qnn_compiler.GRAPHS:
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / name)
    with pytest.raises(ValueError, match=r"^onnxruntime-qnn ends with an error where it compiles for v75: .") as caught:
        qnn_compiler.compile_graphs(tmp_path, tmp_path, "v75", True)
    assert "\n" not in str(caught.value)


@needs_the_compiler
@pytest.mark.parametrize("architecture", qnn_compiler.CHIPS)
def test_each_chip_is_compiled_for(architecture: str, quantized: QuantizedModel, tokens: Tensor, tmp_path: Path):
    qnn_folder.write_graphs(quantized, family("llama"), tmp_path, target(tokens))
    qnn_compiler.compile_graphs(tmp_path / "graphs", tmp_path, architecture, True)
    assert sorted(file.suffix for file in tmp_path.iterdir() if file.stem.startswith(("chunk", "token"))) == [
        ".bin",
        ".onnx",
        ".onnx",
    ]


@needs_the_compiler
def test_where_a_folder_lies_does_not_show_in_what_is_compiled(
    quantized: QuantizedModel, tokens: Tensor, tmp_path: Path
):
    contexts = []
    for place in (tmp_path / "here", tmp_path / "somewhere" / "else"):
        place.mkdir(parents=True)
        qnn_folder.write_graphs(quantized, family("llama"), place, target(tokens))
        qnn_compiler.compile_graphs(place / "graphs", place, "v75", True)
        contexts.append([(place / name).read_bytes() for name in qnn_compiler.GRAPHS])
    assert contexts[0] == contexts[1]
