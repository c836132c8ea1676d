"""Weights that are stored in fewer bits become code x scale, exactly, or are refused; codes are never weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.export import compressed_tensors
from pipeline.knobs.scheme import Weights
from pipeline.models import layout, saved, sources
from pipeline.quant.model import QuantizedModel, float_tensors
from pipeline.quant.weights import dequantize, quantize, weight_step
from tests import tiny

Coded = tuple[dict[str, Tensor], Tensor]  # tensors of a linear by the ends of their names, the weight they stand for
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def write(
    folder: Path,
    said: dict[str, Any] | None,
    code: Callable[[Tensor], Coded],
    shards: int = 1,
    hidden: int = 48,
) -> dict[str, Tensor]:
    """The tiny model, its decoder's linears coded; returns the weights that it should have."""
    tiny.save(folder, hidden=hidden, tie=False)
    stored: dict[str, Tensor] = {}
    expected = load_file(folder / "model.safetensors")
    for name, weight in list(expected.items()):
        if name.endswith("proj.weight"):
            parts, expected[name] = code(weight)
            stored |= {name.removesuffix("weight") + end: part.contiguous() for end, part in parts.items()}
        else:
            stored[name] = weight
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        names = sorted(stored)
        where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}  # codes and scales apart
        for file in set(where.values()):
            save_file({n: stored[n] for n in names if where[n] == file}, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if said is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return expected


def assert_becomes(folder: Path, expected: dict[str, Tensor], stored: str) -> None:
    facts = sources.from_path(str(folder), "", folder.parent / "out")
    assert facts["stored"] == stored
    out = load_file(folder.parent / "out" / "model.safetensors")
    assert out.keys() == expected.keys()
    assert {values.dtype for values in out.values()} == {torch.float32}
    assert [name for name in expected if not torch.equal(out[name], expected[name])] == []
    assert "quantization_config" not in json.loads((folder.parent / "out" / "config.json").read_text())
    assert saved.load_model(folder.parent / "out").generation_config.eos_token_id == 2


def in_blocks(weight: Tensor, rows: int, columns: int, scale_dtype: torch.dtype = torch.float32) -> Coded:
    """FP8, a scale a block, by a plain loop over the blocks; the last ones may be cut."""
    codes, value = torch.zeros_like(weight, dtype=torch.float8_e4m3fn), torch.zeros_like(weight)
    scale = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns), dtype=scale_dtype)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scale[i, j] = weight[at].abs().max() / 448
            codes[at] = (weight[at] / scale[i, j].float()).to(torch.float8_e4m3fn)
            value[at] = codes[at].float() * scale[i, j].float()
    return {"weight": codes, "weight_scale_inv": scale}, value


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_fp8_in_blocks(tmp_path: Path, shards: int, scale_dtype: torch.dtype):
    """48 rows in blocks of 32: transformers' own reader would take blocks of 24."""
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [32, 32]}
    expected = write(tmp_path / "model", said, lambda w: in_blocks(w, 32, 32, scale_dtype), shards)
    assert_becomes(tmp_path / "model", expected, "fp8 (e4m3), dequantized")


def by_tensor(weight: Tensor, scale: str) -> Coded:
    step = weight.abs().max() / 448
    codes = (weight / step).to(torch.float8_e4m3fn)
    return {"weight": codes, scale: step, "input_scale": torch.tensor(1.0)}, codes.float() * step


def by_row(weight: Tensor) -> Coded:
    step = weight.abs().amax(dim=1, keepdim=True) / 448
    codes = (weight / step).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": step}, codes.float() * step


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale"])
def test_fp8_with_a_scale_a_tensor(tmp_path: Path, scale: str):
    expected = write(tmp_path / "model", {"quant_method": "fp8"}, lambda w: by_tensor(w, scale))
    assert_becomes(tmp_path / "model", expected, "fp8, dequantized")


def test_fp8_with_a_scale_a_row(tmp_path: Path):
    expected = write(tmp_path / "model", {"quant_method": "fbgemm_fp8"}, by_row)
    assert_becomes(tmp_path / "model", expected, "fbgemm_fp8, dequantized")


def test_modelopt_says_its_algorithm_in_a_file_of_its_own(tmp_path: Path):
    expected = write(tmp_path / "model", None, lambda w: by_tensor(w, "weight_scale"))
    side = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
    (tmp_path / "model" / "hf_quant_config.json").write_text(json.dumps(side))
    assert_becomes(tmp_path / "model", expected, "modelopt (FP8), dequantized")


def fp4(weight: Tensor) -> Coded:
    """ModelOpt's layout: groups of 16, scales in FP8, and one of the tensor."""
    groups = weight.unflatten(1, (-1, 16))
    overall = weight.abs().max() / (6 * 448)
    scale = (groups.abs().amax(dim=2) / 6 / overall).clamp(min=2**-6).to(torch.float8_e4m3fn)
    step = scale.float() * overall
    codes = (groups / step[:, :, None] - FP4.reshape(-1, 1, 1, 1)).abs().argmin(dim=0).flatten(1)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    value = (FP4[codes].unflatten(1, (-1, 16)) * step[:, :, None]).flatten(1)
    parts = {"weight": packed, "weight_scale": scale, "weight_scale_2": overall, "input_scale": torch.tensor(1.0)}
    return parts, value


def test_modelopt_nvfp4(tmp_path: Path):
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
    expected = write(tmp_path / "model", said, fp4)
    assert_becomes(tmp_path / "model", expected, "modelopt (NVFP4), dequantized")


def awq(weight: Tensor, zero_point: bool = True) -> Coded:
    """AutoAWQ's gemm layout: [in, out], eight codes an int32 in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    groups = weight.T.unflatten(0, (-1, 16))  # (groups, 16, out)
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    scale = ((high - low) / 15).half() if zero_point else (groups.abs().amax(dim=1) / 7).half()
    zero = (-low / scale.float()).round().clamp(0, 15) if zero_point else torch.full_like(low, 8)
    codes = ((groups / scale.float()[:, None]).round() + zero[:, None]).clamp(0, 15)
    value = ((codes - zero[:, None]) * scale.float()[:, None]).flatten(0, 1).T

    def packed(codes: Tensor) -> Tensor:
        order = codes.to(torch.int64).unflatten(1, (-1, 8))[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return (order << torch.arange(0, 32, 4)).sum(dim=2).to(torch.uint32).view(torch.int32)

    parts = {"qweight": packed(codes.flatten(0, 1)), "scales": scale}
    return parts | ({"qzeros": packed(zero)} if zero_point else {}), value


@pytest.mark.parametrize("zero_point", [True, False])
def test_awq(tmp_path: Path, zero_point: bool):
    said = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": zero_point}
    expected = write(tmp_path / "model", said, lambda w: awq(w, zero_point))
    assert_becomes(tmp_path / "model", expected, "awq (gemm), dequantized")


GROUPED = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 16}
SCHEMES = {
    "pack-quantized": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"},
    "pack-quantized, asymmetric": GROUPED,
    "int-quantized": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "float-quantized": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"},
    "float-quantized, blocks": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]},
}


def compressed(scheme: QuantizationScheme, layout: str) -> Callable[[Tensor], Coded]:
    """The library's own compressor writes the codes; the value is worked out from codes that are known before."""
    args = scheme.weights
    assert args is not None

    def code(weight: Tensor) -> Coded:
        group = {"group": args.group_size, "channel": weight.shape[1]}.get(args.strategy)
        if args.strategy == "block":
            parts, value = in_blocks(weight, 32, 32, torch.bfloat16)
            return {"weight": parts["weight"], "weight_scale": parts["weight_scale_inv"]}, value
        top = 448 if args.type == "float" else 2 ** (args.num_bits - 1) - 1
        grouped = weight.unflatten(1, (-1, group or weight.shape[1]))
        scale = (
            (grouped.abs().amax(dim=2) / top).bfloat16() if group else (weight.abs().max() / top).bfloat16().reshape(1)
        )
        step = scale.float().reshape(-1, scale.shape[-1], 1) if group else scale.float()
        codes = (
            (grouped / step).round().clamp(-top, top)
            if args.type == "int"
            else (grouped / step).to(torch.float8_e4m3fn)
        )
        zero = (
            torch.zeros_like(scale, dtype=torch.int8)
            if args.symmetric
            else torch.randint(-2, 3, scale.shape).to(torch.int8)
        )
        value = (codes.float() * step).flatten(1)
        if not args.symmetric:
            value = ((codes.float().clamp(-5, 4) - zero.float()[:, :, None]) * step).flatten(1)
        state = {"weight": value.clone(), "weight_scale": scale.float(), "weight_zero_point": zero}
        parts = BaseCompressor.get_value_from_registry(layout).compress(state, scheme)
        parts["weight_scale"] = scale
        return {name: part for name, part in parts.items() if part is not None}, value

    return code


@pytest.mark.parametrize("kind", SCHEMES)
def test_compressed_tensors(tmp_path: Path, kind: str):
    layout = kind.partition(",")[0]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES[kind]))
    said = QuantizationConfig(
        config_groups={"group_0": scheme}, format=layout, quantization_status="compressed", ignore=["lm_head"]
    ).model_dump(mode="json")
    said["config_groups"]["group_0"]["format"] = layout
    expected = write(tmp_path / "model", said, compressed(scheme, layout))
    assert_becomes(tmp_path / "model", expected, f"compressed-tensors ({layout}), dequantized")


def test_an_export_of_several_schemes_becomes_codes_times_scales(tmp_path: Path):
    """transformers' own reader takes the first group's bits for all."""
    model, folder = tiny.llama(tie=False), tmp_path / "model"
    folder.mkdir()
    schemes = {x.name: Weights(8) if x.role == "down" else Weights(4, group=16) for x in layout.linears(model)}
    steps = {name: weight_step(model.get_submodule(name).weight, scheme) for name, scheme in schemes.items()}
    codes = {n: quantize(model.get_submodule(n).weight, steps[n], s).to(torch.int8) for n, s in schemes.items()}
    quantized = QuantizedModel(schemes, codes, steps, floats=float_tensors(model, set(codes)))
    compressed_tensors.write(quantized, model, ["lm_head"], folder)
    model.generation_config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    expected = {name: values.float() for name, values in quantized.floats.items()}
    expected |= {f"{n}.weight": dequantize(codes[n], steps[n], schemes[n]) for n in codes}
    assert_becomes(folder, expected, "compressed-tensors (pack-quantized), dequantized")


def test_an_export_with_a_missing_tensor_does_not_load(tmp_path: Path):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES["pack-quantized"]))
    said = compressed_tensors.quantization_config({"a": Weights(4)}, ["lm_head"])
    write(tmp_path / "model", said, compressed(scheme, "pack-quantized"))
    saved.load_model(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    for name in ("model.layers.1.mlp.up_proj.weight_packed", "model.layers.1.mlp.up_proj.weight_scale"):
        save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"no causal language model .* lacks {name}"):
            saved.load_model(tmp_path / "model")


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match="cannot be the teacher") as caught:
        sources.from_path(str(folder), "", folder.parent / "out")
    return str(caught.value)


@pytest.mark.parametrize("method", ["aqlm", "hqq", "mxfp4", "something new"])
def test_a_method_that_cannot_be_dequantized_is_refused(tmp_path: Path, method: str):
    write(tmp_path / "model", {"quant_method": method}, lambda w: ({"weight": w}, w))
    assert f"its weights are stored by {method!r}, which cannot be dequantized here" in refused(tmp_path / "model")


@pytest.mark.parametrize("method", ["fp8", "awq", "fbgemm_fp8", "gptq", "bitsandbytes"])
def test_a_config_that_speaks_of_codes_where_there_are_none_is_refused(tmp_path: Path, method: str):
    write(tmp_path / "model", {"quant_method": method}, lambda w: ({"weight": w}, w))
    assert f"says {method!r}, but no tensor is stored so" in refused(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_codes_that_no_config_speaks_of_are_refused(tmp_path: Path, dtype: torch.dtype):
    write(tmp_path / "model", None, lambda w: ({"weight": (w * 10).to(dtype)}, w))
    message = refused(tmp_path / "model")
    assert "its tensors hold codes, model.layers.0.mlp.down_proj.weight (" in message
    assert "has no quantization_config" in message


def test_codes_without_a_scale_and_scales_without_codes_are_refused(tmp_path: Path):
    said = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    for i, parts in enumerate(({"weight": torch.float8_e4m3fn}, {"weight": torch.float32, "weight_scale_inv": None})):
        folder = tmp_path / str(i) / "model"

        def code(w: Tensor, parts: dict[str, Any] = parts) -> Coded:
            return {end: torch.ones(2, 2) if dtype is None else w.to(dtype) for end, dtype in parts.items()}, w

        write(folder, said, code)
        assert ("has 0 scales, not one", "is the scale of a weight that is stored as F32")[i] in refused(folder)


def test_a_scale_of_another_shape_is_refused(tmp_path: Path):
    said = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    write(tmp_path / "model", said, lambda w: in_blocks(w, 32, 32))
    assert "in blocks of [16, 16]" in refused(tmp_path / "model")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"quantization_status": "frozen"}, "quantization_status is 'frozen'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
    ],
)
def test_what_compressed_tensors_cannot_decompress_is_refused(tmp_path: Path, extra: dict, expected: str):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES["pack-quantized"]))
    said = compressed_tensors.quantization_config({"a": Weights(4)}, ["lm_head"]) | extra
    write(tmp_path / "model", said, compressed(scheme, "pack-quantized"))
    assert expected in refused(tmp_path / "model")


def test_an_order_of_the_groups_is_refused(tmp_path: Path):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES["pack-quantized"]))
    said = compressed_tensors.quantization_config({"a": Weights(4)}, ["lm_head"])
    inner = compressed(scheme, "pack-quantized")
    write(tmp_path / "model", said, lambda w: (inner(w)[0] | {"weight_g_idx": torch.arange(w.shape[1])}, w))
    assert "weight_g_idx" in refused(tmp_path / "model")
