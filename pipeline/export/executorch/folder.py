"""A folder for phones: a program that ExecuTorch runs through XNNPACK, and the tokenizer.

The program is one as its runner for language models loads it: tokens and a position in, logits out, the KV cache
inside, and methods that say how long a text may be and where it ends. XNNPACK multiplies the codes with INT8 inputs;
`kernel_inputs` has how the scheme's grids become these. What the scheme leaves in float is float32 in the program.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.export.executorch import grids, program, read_back
from pipeline.export.executorch.decoder import Decoder
from pipeline.export.proof import others
from pipeline.models import layout, saved
from pipeline.quant.model import QuantizedModel

FILE = "model.pte"
CHUNK = 128  # tokens of a prompt that are read at once
SHOWN = 8  # tensors that are named
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LINEARS = (*(f"self_attn.{part}_proj" for part in "qkvo"), *MLP)
IN_A_LAYER = (  # what has weights, in the decoder's order
    "input_layernorm",
    *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "o_proj")),
    "post_attention_layernorm",
    *MLP,
)


def write(quantized: QuantizedModel, model: PreTrainedModel, teacher: Path, out: Path) -> None:
    """Write program and tokenizer.

    Args:
        model: the float model, which gives config and structure. teacher: its folder.
    """
    quantized.untie(model)
    places = grids.places(model)
    decoder, chunk = Decoder(model, quantized, places), min(CHUNK, places)
    (out / FILE).write_bytes(program.lowered(decoder, chunk, methods(model, places, chunk)))
    saved.load_tokenizer(teacher).save_pretrained(out)


def methods(model: PreTrainedModel, places: int, chunk: int) -> dict[str, Any]:
    """What ExecuTorch's runner asks a program for."""
    config, ends = model.config, model.generation_config.eos_token_id
    ends = config.eos_token_id if ends is None else ends
    told = {
        "get_max_seq_len": chunk,
        "get_max_context_len": places,
        "get_vocab_size": config.vocab_size,
        "get_n_layers": config.num_hidden_layers,
        "get_bos_id": config.bos_token_id,
        "get_eos_ids": [ends] if isinstance(ends, int) else ends,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    return {name: value for name, value in told.items() if value is not None}


def check(quantized: QuantizedModel, model: PreTrainedModel, folder: Path) -> None:
    """Compare codes, scales and float tensors with the quantized model's, each where the decoder uses it.

    Raises:
        ValueError: they are not those that were quantized, bit for bit; names them.
    """
    read = read_back.stored(folder / FILE)
    linears, embedding = in_order(quantized, model)
    tables = [embedding] if embedding in quantized.codes else []
    counts = (len(read.linears), len(read.tables)), (len(linears), len(tables))
    if counts[0] != counts[1]:
        raise ValueError(f"{FILE} has {counts[0]} linears and embeddings with codes, where {counts[1]} were written")
    wrong = {}
    for name, weight in zip([*linears, *tables], [*read.linears, *read.tables], strict=True):
        codes, scale = quantized.codes[name], quantized.steps[name].scale.flatten()
        held, ends = weight.codes[:, : codes.shape[1]], weight.codes[:, codes.shape[1] :]
        if not torch.equal(held, codes) or bool(ends.any()) or not torch.equal(weight.scale, scale):
            wrong[name] = held, codes
    if wrong:
        raise ValueError(f"codes or scales read back from {FILE} differ in {len(wrong)} weights: {others(wrong)}")
    _check_floats(quantized, floats_in_order(quantized, model), read.floats)


def _check_floats(quantized: QuantizedModel, names: list[str], held: list[bytes]) -> None:
    """Compare the float tensors; names, held: what the decoder uses, in its order."""
    unused = [name for name in quantized.floats if name not in names]
    places = [*zip(names, held, strict=False), *((name, b"") for name in [*names[len(held) :], *unused])]
    missing = [name for name, content in places if content not in _contents(quantized.floats[name])]
    if missing:
        elsewhere = [name for name in missing if not _contents(quantized.floats[name]).isdisjoint(held)]
        exchanged = f"; in another's place: {elsewhere[:SHOWN]}" if elsewhere else ""
        raise ValueError(f"{FILE} does not have {len(missing)} tensors, bit for bit: {missing[:SHOWN]}{exchanged}")
    if len(held) > len(names):
        raise ValueError(f"{FILE} uses {len(held)} float tensors, where {len(names)} were written")


def in_order(quantized: QuantizedModel, model: PreTrainedModel) -> tuple[list[str], str]:
    """Names of the weights with codes that linears multiply, in the decoder's order, and the embedding's name.

    A head that has no weight of its own multiplies the embedding's.
    """
    embedding, head = layout.embedding(model), layout.head(model)
    assert embedding is not None
    assert head is not None
    prefix, layers = layout.decoder_layers(model)
    names = [f"{prefix}.{number}.{part}" for number in range(len(layers)) for part in LINEARS]
    has_own = head.name in quantized.codes or f"{head.name}.weight" in quantized.floats
    names.append(head.name if has_own else embedding.name)
    return [name for name in names if name in quantized.codes], embedding.name


def floats_in_order(quantized: QuantizedModel, model: PreTrainedModel) -> list[str]:
    """Names of the tensors in float, in the order of the decoder's lines; a head's weight may be the embedding's."""
    embedding, head = layout.embedding(model), layout.head(model)
    assert embedding is not None
    assert head is not None
    (prefix, layers), (decoder_name, _) = layout.decoder_layers(model), layout.text_decoder(model)
    parts = [f"{prefix}.{number}.{part}" for number in range(len(layers)) for part in IN_A_LAYER]
    names = [f"{part}.{kind}" for part in [*parts, f"{decoder_name}.norm", head.name] for kind in ("weight", "bias")]
    if head.name not in quantized.codes and f"{head.name}.weight" not in quantized.floats:
        names.insert(-1, f"{embedding.name}.weight")
    return [name for name in [f"{embedding.name}.weight", *names] if name in quantized.floats]


def _contents(values: Tensor) -> set[bytes]:
    """A tensor as it may lie in a program: in its own dtype, or widened."""
    return {part.contiguous().flatten().view(torch.uint8).numpy().tobytes() for part in (values.float(), values)}
