"""Whether an export reads back as what was quantized, and what the dtype costs that its config names.

What transformers loads in float32 has to be the quantized model to the last bit, in all of its state, and to say the
same. In the dtype of the config, which is what `dtype="auto"` loads, codes times scales are rounded once more, and so
is all that passes through the layers; how much that changes is measured.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.artifacts.contract import write_text
from pipeline.models import forward, saved
from pipeline.quant.model import QuantizedModel, state

POSITIONS, LENGTH = 1024, 128  # on which logits are compared: of random tokens, so many a sequence
LOGITS_TOLERANCE = 1e-3  # of the largest logit: what another order of float32 sums may change
DTYPES = ("float16", "bfloat16")  # that a packed export's config may name: the first that is good enough, else float32
MOST_KL = 0.01  # nats a token that the config's dtype may cost
HEADROOM = 2.0  # how far below a dtype's greatest number what passes through the model stays on the tokens


class Loss(NamedTuple):
    """What a dtype costs: mean KL(float32 || dtype) in nats a token, and the largest difference of two logits."""

    kl: float
    logits_difference: float


def probe_tokens(model: PreTrainedModel) -> Tensor:
    """The same random tokens for every model of a vocabulary: int64 [sequences, length], POSITIONS of them or more.

    A sequence is no longer than the model's context.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LENGTH
    length = min(LENGTH, limit)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    shape = (math.ceil(POSITIONS / length), length)
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def check_state(reference: PreTrainedModel, loaded: PreTrainedModel, quantized: QuantizedModel) -> None:
    """Compare every parameter and every buffer, those that the config gives included.

    Args:
        reference: with the quantized model's numbers. loaded: the export, which has run once, since that unpacks it.

    Raises:
        ValueError: they are not the same, bit for bit; all that differ are named, quantized weights first.
    """
    ours = {**state(reference), **dict(reference.named_buffers())}
    theirs: dict[str, Tensor] = dict(loaded.named_parameters(remove_duplicate=False))
    theirs |= dict(loaded.named_buffers(remove_duplicate=False))
    wrong = [name for name, values in ours.items() if not _same(values, theirs.get(name))]
    packed = [name.removesuffix(".weight") for name in wrong if name.removesuffix(".weight") in quantized.codes]
    if packed:
        raise ValueError(f"the reloaded weights are not codes times scales in {len(packed)} linears: {packed[:8]}")
    if wrong:
        raise ValueError(f"the reloaded model's state differs in {len(wrong)} tensors: {wrong[:8]}")


def others(wrong: dict[str, tuple[Tensor, Tensor]]) -> str:
    """The first names of tensors that are others in a file, and which of them are constant there; each with ours."""
    constant = [name for name, (theirs, ours) in wrong.items() if is_constant(theirs) and not is_constant(ours)]
    return f"{[*wrong][:8]}" + (f"; constant in the file: {constant[:8]}" if constant else "")


def is_constant(values: Tensor) -> bool:
    """Whether all values of a tensor are the same."""
    return bool((values == values.flatten()[0]).all())


def _same(ours: Tensor, theirs: Tensor | None) -> bool:
    return theirs is not None and ours.shape == theirs.shape and torch.equal(ours, theirs.to(ours.dtype))


@torch.no_grad()
def same_logits(reference: PreTrainedModel, loaded: PreTrainedModel, tokens: Tensor) -> float:
    """Largest difference of two models' logits, whatever they do after the head, as a share of the largest logit.

    tokens: int64 [sequences, length]; the logits of one sequence are held at a time.

    Raises:
        ValueError: it exceeds LOGITS_TOLERANCE.
    """
    difference = largest = torch.zeros(())
    for ours, theirs in _logits(reference, loaded, tokens):
        difference = torch.maximum(difference, (ours - theirs).abs().max())  # keeps what is no number
        largest = torch.maximum(largest, ours.abs().max())
    share = float(difference / largest)
    if not share <= LOGITS_TOLERANCE:
        raise ValueError(f"the reloaded model's logits differ by {share:.2e} of the largest, over {LOGITS_TOLERANCE}")
    return share


@torch.no_grad()
def dtype_loss(reference: PreTrainedModel, loaded: PreTrainedModel, tokens: Tensor) -> Loss:
    """What a model loses in its own dtype against `reference`, in float32; not a number where its logits are none."""
    total, difference = 0.0, torch.zeros(())
    for ours, theirs in _logits(reference, loaded, tokens):
        p, q = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
        total += float(torch.where(p > -math.inf, p.exp() * (p - q), 0).sum(dim=-1).double().sum())
        difference = torch.maximum(difference, (ours - theirs).abs().max())
    return Loss(total / tokens.numel(), float(difference))


def _logits(a: PreTrainedModel, b: PreTrainedModel, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of two models, float32 [1, length, vocabulary] each, sequence by sequence."""
    for sequence in tokens.split(1):
        ours, theirs = (model(input_ids=sequence, use_cache=False).logits.float() for model in (a, b))
        yield ours, theirs


@torch.no_grad()
def choose_dtype(reference: PreTrainedModel, folder: Path, tokens: Tensor) -> dict[str, Any]:
    """Let an export's config name the first of DTYPES in which the model is nearly what it is in float32.

    It is where nothing that passes through the model comes near the dtype's greatest number, and where the dtype costs
    no more than MOST_KL; float32 costs nothing.

    Args:
        reference: float32, with the quantized model's numbers. folder: the export. tokens: int64 [sequences, length].

    Returns:
        Facts for the manifest: the dtype and its loss, and why those before it were passed over.
    """
    passed_over: dict[str, str] = {}
    dtype, loss = "float32", Loss(0.0, 0.0)
    for name in DTYPES:
        with _largest_value(reference) as largest:
            cost = dtype_loss(reference, saved.load_model(folder, name), tokens)
        if largest["value"] * HEADROOM > torch.finfo(forward.torch_dtype(name)).max:
            passed_over[name] = f"values up to {largest['value']:.3g} pass through the model"
        elif not cost.kl <= MOST_KL:
            passed_over[name] = f"it costs {cost.kl:.3g} nats a token, where at most {MOST_KL} are allowed"
        else:
            dtype, loss = name, cost
            break
    _name_dtype(folder, dtype)
    return _facts(dtype, loss, passed_over)


def _facts(dtype: str, loss: Loss, passed_over: dict[str, str]) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "dtype_kl": loss.kl,
        "dtype_logits_difference": loss.logits_difference,
        "dtypes_passed_over": passed_over,
    }


EXACT = _facts("float32", Loss(0.0, 0.0), {})  # of a config that names float32


@contextmanager
def _largest_value(model: PreTrainedModel) -> Iterator[dict[str, float]]:
    """The largest magnitude that any module of a model gives, while the context lasts, under "value"."""
    largest = {"value": 0.0}

    def look(module: nn.Module, args: Any, output: Any) -> None:
        values = output[0] if isinstance(output, tuple) and output else output
        if isinstance(values, Tensor) and values.is_floating_point() and values.numel():
            largest["value"] = max(largest["value"], float(values.abs().max()))

    handles = [module.register_forward_hook(look) for module in model.modules()]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


def _name_dtype(folder: Path, name: str) -> None:
    """Write a dtype into an export's config, wherever that has one."""

    def named(part: dict[str, Any]) -> dict[str, Any]:
        inner = {key: named(value) if key.endswith("_config") and value else value for key, value in part.items()}
        return {**inner, "dtype": name} if "dtype" in inner else inner

    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    write_text(file, json.dumps({**named(config), "dtype": name}, indent=2, sort_keys=True) + "\n")
