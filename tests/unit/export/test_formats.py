"""Every format: what transformers loads from the folder is what was quantized."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.calibration.rotation import rotate
from pipeline.export import formats
from pipeline.export.formats import EXPORT_FORMATS, export, load_exported
from pipeline.knobs.scheme import Activations, KVCache, Scheme, Weights, from_short
from pipeline.quant.activations import from_json
from tests import families, tiny
from tests.families import family
from tests.unit.export.conftest import Exported
from tests.unit.export.quantized import HEAD, SCHEMES, quantized

PACKED = [name for name in SCHEMES if name != "asymmetric"]
CASES = [
    *(("compressed-tensors", name) for name in PACKED),
    *(("dequantized", n) for n in ("W4", "mixed", "asymmetric")),
]


LOADED = [name for name, format in EXPORT_FORMATS.items() if format.loads]
every_case = pytest.mark.parametrize(("format_name", "scheme"), CASES)


def test_every_format_that_transformers_loads_is_tried():
    assert {name for name, _ in CASES} == {*LOADED}


@every_case
def test_transformers_loads_the_very_same_weights(exported: Exported, tokens: Tensor, format_name: str, scheme: str):
    model = AutoModelForCausalLM.from_pretrained(exported(format_name, scheme)[0], dtype=torch.float32)
    model(input_ids=tokens)  # decompresses
    start = quantized(scheme)
    for name, codes in start.codes.items():
        group = start.schemes[name].group or codes.shape[1]
        scale, zero = (part.repeat_interleave(group, dim=1) for part in start.steps[name])
        assert torch.equal(model.get_submodule(name).weight, (codes.float() - zero) * scale)
    parameters = dict(model.named_parameters())
    for name, values in start.floats.items():
        assert torch.equal(parameters[name], values.float())
    tied = not {"lm_head", "lm_head.weight"} & {*start.codes, *start.floats}
    assert model.config.tie_word_embeddings == tied
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight) == tied


@every_case
def test_the_reloaded_model_says_the_same_with_its_inputs_and_cache_quantized(
    exported: Exported, tokens: Tensor, format_name: str, scheme: str
):
    folder, facts = exported(format_name, scheme)
    reference = tiny.llama()
    plain = reference(input_ids=tokens).logits
    undo = quantized(scheme).put_into(reference)
    expected = reference(input_ids=tokens).logits
    undo()
    torch.testing.assert_close(load_exported(folder, "float32")(input_ids=tokens).logits, expected)
    bare = reference(input_ids=tokens).logits  # no more than the weights
    signals = SCHEMES[scheme].activations.bits or SCHEMES[scheme].kv_cache.bits
    assert torch.equal(bare, expected) == (not signals)
    assert not torch.allclose(plain, expected, rtol=1e-3)
    assert 0 <= facts["logits_difference"] < 1e-4


def test_weights_can_be_tied_once_more(exported: Exported, tokens: Tensor):
    """lm-eval ties those of a model that it is given or loads."""
    folder = exported("compressed-tensors", "vocabulary")[0]
    used, loaded = load_exported(folder, "float32"), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        used(input_ids=tokens)
    for model in (used, loaded):
        model.tie_weights()
        start = quantized("vocabulary").weight("model.embed_tokens")
        model(input_ids=tokens)
        assert torch.equal(model.lm_head.weight, start)
        assert torch.equal(model.get_input_embeddings().weight, start)


@every_case
def test_how_inputs_and_cache_are_quantized_lies_beside_the_weights(exported: Exported, format_name: str, scheme: str):
    start = quantized(scheme)
    stored = json.loads((exported(format_name, scheme)[0] / formats.SIGNALS).read_text())
    assert from_json(stored["inputs"]) == start.inputs
    assert KVCache(**stored["kv_cache"]) == start.kv_cache


def test_a_model_in_bfloat16_has_the_same_signals(exported: Exported, tokens: Tensor):
    folder, _ = exported("compressed-tensors", "groups")
    logits, expected = (
        load_exported(folder, dtype)(input_ids=tokens).logits.float() for dtype in ("bfloat16", "float32")
    )
    assert (logits - expected).norm() < 0.15 * expected.norm()


@pytest.mark.parametrize("name", families.FAMILIES)
@pytest.mark.parametrize(("embedding", "head"), [(Weights(0), HEAD), (Weights(6, group=8), Weights(5))])
def test_other_families_come_back_the_same(
    tokens: Tensor, valid: Tensor, tmp_path: Path, name: str, embedding: Weights, head: Weights
):
    """With a quantized head, and with the embedding, too, of one weight or of two."""
    cache = KVCache(0 if name.startswith(("mamba", "falcon", "bloom")) else 4)
    scheme = Scheme(Weights(4, group=4), Activations(8, dynamic=True), cache, embedding=embedding, head=head)
    options = Options("mse", {}, batch=6, measure=False)
    start = calibrate(family(name), tokens, valid, scheme, options, None, lambda: None).model
    (tmp_path / "out").mkdir()
    export(start, families.save(tmp_path / "teacher", name), "compressed-tensors", tmp_path / "out")
    reference = family(name)
    start.put_into(reference)
    expected = reference(input_ids=tokens, use_cache=False).logits
    logits = load_exported(tmp_path / "out", "float32")(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format_name", LOADED)
def test_a_rotated_model_has_a_head_of_its_own(
    teacher_folder: Path, tokens: Tensor, valid: Tensor, tmp_path: Path, format_name: str
):
    options = Options("gptq", {}, batch=6, measure=False)
    start = calibrate(rotate(tiny.llama(), 0), tokens, valid, from_short("W8"), options, None, lambda: None).model
    export(start, teacher_folder, format_name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    logits, expected = (lm(input_ids=tokens).logits for lm in (model, tiny.llama()))
    assert not model.config.tie_word_embeddings
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, start.floats["lm_head.weight"].float())
    assert (logits - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("format_name", LOADED)
def test_the_tokenizer_and_what_ends_a_text_come_along(exported: Exported, format_name: str):
    folder, _ = exported(format_name, "W4")
    assert (
        AutoTokenizer.from_pretrained(folder)("permafrost")["input_ids"] == tiny.tokenizer()("permafrost")["input_ids"]
    )
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == 2


LINEARS = (
    2 * 9 * 32 * 32
)  # weights of the decoder's linears: q and o 32 x 32, k and v 16 x 32, three of 64 x 32, a layer
ROWS = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)  # their output channels
REST = 259 * 32 + 5 * 32  # embedding and norms


@every_case
def test_the_facts_are_sizes_of_the_file(exported: Exported, format_name: str, scheme: str):
    """Bits a quantized weight by hand: codes, float16 scales, and zero points of the weight's width."""
    folder, facts = exported(format_name, scheme)
    stored = (folder / "model.safetensors").stat().st_size
    bits, total, weights = 0, LINEARS + REST, LINEARS  # total: the teacher's, whose head is its embedding
    if scheme == "groups":
        bits = 4 * LINEARS + 16 * LINEARS // 16
    elif scheme == "asymmetric":
        bits = 3 * LINEARS + (16 + 3) * LINEARS // 8
    elif scheme == "head":
        head = 259 * 32
        bits, weights = 2 * LINEARS + 16 * ROWS + 8 * head + 16 * head // 16, LINEARS + head
    elif scheme == "embedding":  # the head is a weight of its own, in float
        bits, weights = 4 * LINEARS + 16 * ROWS + (6 * 32 + 16) * 259, LINEARS + 259 * 32
    elif scheme in ("vocabulary", "blocks"):  # one weight, on the finer grid
        row = 8 * 32 + (2 if scheme == "vocabulary" else 1) * 16
        bits, weights = 4 * LINEARS + 16 * ROWS + row * 259, LINEARS + 259 * 32
    elif scheme == "mixed":
        head, down, v = 259 * 32, 2 * 32 * 64, 2 * 16 * 32
        half = (LINEARS - down - v) // 2
        bits = 8 * half + 4 * half + 3 * down + 8 * head
        bits += 16 * ((ROWS - 2 * 32 - 2 * 16) + down // 16 + head // 16)
        weights = LINEARS - v + head
    else:
        bits = SCHEMES[scheme].weights.bits * LINEARS + 16 * ROWS
    assert facts["format"] == format_name
    assert facts["weight_bytes"] == stored
    assert facts["bits_per_weight"] == pytest.approx(8 * stored / total)
    assert facts["bits_per_quantized_weight"] == pytest.approx(bits / weights)


@pytest.mark.parametrize("scheme", ["W4", "W8", "groups"])
def test_the_packed_file_is_as_small_as_its_bits_say(exported: Exported, scheme: str):
    folder, facts = exported("compressed-tensors", scheme)
    tensors = load_file(folder / "model.safetensors")
    quantized_bytes = sum(t.nbytes for key, t in tensors.items() if key.endswith(("_packed", "_scale")))
    assert 8 * quantized_bytes / LINEARS == pytest.approx(facts["bits_per_quantized_weight"])


def test_an_unknown_format_is_answered_with_those_there_are(teacher_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="unknown export format 'compressed'; did you mean 'compressed-tensors'"):
        export(quantized("W4"), teacher_folder, "compressed", tmp_path)


@pytest.mark.parametrize("format_name", EXPORT_FORMATS)
def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused_in_a_line(
    format_name: str, tmp_path: Path
):
    teacher, out = tiny.save_whole(tmp_path / "teacher"), tmp_path / "out"
    larger = tiny.merging_tokenizer()
    larger.add_tokens(["the", "to"])
    larger.save_pretrained(teacher)
    out.mkdir()
    with pytest.raises(ValueError, match=r"embedding has 259 rows, none for .* 'the' \(259\), 'to' \(260\)") as caught:
        export(quantized("blocks"), teacher, format_name, out)
    assert "\n" not in str(caught.value)
    assert [*out.iterdir()] == []


def test_asymmetric_weights_do_not_go_into_the_packed_format(teacher_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="compressed-tensors holds no asymmetric weights"):
        export(quantized("asymmetric"), teacher_folder, "compressed-tensors", tmp_path)


@pytest.mark.parametrize("format_name", LOADED)
def test_the_same_model_gives_the_same_bytes(teacher_folder: Path, tmp_path: Path, format_name: str):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export(quantized("mixed"), teacher_folder, format_name, tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json", formats.SIGNALS} <= set(
        files
    )
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    for name in files:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(teacher_folder).encode() not in content
