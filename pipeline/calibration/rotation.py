"""Rotate a model's residual stream, so that its weights are easier to round: folded into them, the same function.

Everything that writes into the residual stream (embeddings, o, down, what experts give) writes a rotated vector, and
everything that reads it undoes that: R of QuaRot (2404.00456, section 4) and R1 of SpinQuant (2405.16406, section 3.1),
with the norms' channel weights first moved into what reads them. The rotation spreads the few large channels over all.

A norm between a writer and the stream (Gemma 2 and 3, OLMo 2, GLM-4) stands in the way, unless it multiplies all
channels alike: its gain g would have to be moved behind the rotation, where diag(g) R is no rotation with another gain
after it, and moved into the writer it would change what the norm divides by. Such a model is refused.

An embedding and a head that share a weight part here, since the last norm's weight goes into the head alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.calibration.hadamard import Rotation, random_rotation
from pipeline.calibration.norm_layers import is_norm, norm_offset
from pipeline.calibration.probing import Side, Stream, masked
from pipeline.calibration.stream import find
from pipeline.models import layout
from pipeline.quant.model import FLOAT_DTYPE, untie_head

TOLERANCE = 1e-3  # of the largest logit: what another order of float32 sums may change
TOKENS = 32  # on which a model is compared with what it was
UNIFORM = 1e-6  # of a gain: how much that of a norm's channels may differ and still be one


@torch.no_grad()
def rotate(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Rotate a float32 model in place, by the rotation of a seed; returns it.

    Until it has been seen to compute the same, the parameters that change are held twice.

    Raises:
        ValueError: it would compute something else, and why: there are other things in its residual stream than
            embeddings, norms before what reads it, and products with parameters. The model is as it was.
    """
    problem = f"{type(model).__name__} does not allow its residual stream to be rotated"
    tied = layout.tied(model)
    originals: dict[str, Tensor] = {}
    try:
        before, stream = _logits(model), find(model)
        _refuse(stream.problems, [name for name in stream.posts if not _is_even(model, name)])
        _turn(model, stream, random_rotation(_embedding(model).embedding_dim, seed), originals)
        moved = float((_logits(model) - before).abs().max() / before.abs().max())
        if not moved <= TOLERANCE:
            raise ValueError(f"the logits would move by {moved:.1e} of the largest")
    except Exception as error:  # a model's own code may fail in any way where it is run in parts
        for name, values in originals.items():
            model.get_parameter(name).copy_(values)
        if tied:
            model.get_output_embeddings().weight = _embedding(model).weight
            model.config.tie_word_embeddings = True
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{problem} ({' '.join(reason.split())})") from error
    return model


def _embedding(model: PreTrainedModel) -> Any:
    return model.get_input_embeddings()


def _turn(model: PreTrainedModel, stream: Stream, rotation: Rotation, originals: dict[str, Tensor]) -> None:
    """Turn all that writes and reads the stream; what was there before goes to `originals`."""
    head = layout.head(model)
    untie_head(model, {head.name} if head else set())

    def keep(name: str) -> Tensor:
        parameter = model.get_parameter(name)
        originals[name] = parameter.detach().clone()
        return parameter

    for norm, sides in stream.readers.items():
        for name, _ in model.get_submodule(norm).named_parameters(prefix=norm):
            keep(name)
        gain = _level(model.get_submodule(norm), rotation)
        for side in sides:
            _turn_side(keep(side.parameter), side, rotation, gain)
    for norm in stream.posts:
        if getattr(model.get_submodule(norm), "bias", None) is not None:
            _turn_side(keep(f"{norm}.bias"), Side(f"{norm}.bias", 0), rotation)
    for side in stream.writers:
        _turn_side(keep(side.parameter), side, rotation)


def _turn_side(parameter: Tensor, side: Side, rotation: Rotation, gain: Tensor | None = None) -> None:
    """Multiply a parameter's vectors along a dimension by the gain [width], if there is one, and turn them."""
    parts = parameter.unbind() if parameter.ndim > 2 and side.dim > 0 else [parameter]  # an expert at a time
    dim = side.dim - (parameter.ndim - parts[0].ndim)
    for part in parts:
        rows = part.double().movedim(dim, -1)
        part.copy_(rotation.turn(rows if gain is None else rows * gain).movedim(-1, dim))


def _is_even(model: PreTrainedModel, norm: str) -> bool:
    """Whether a norm multiplies all channels by the same."""
    weight = getattr(model.get_submodule(norm), "weight", None)
    if weight is None:
        return True
    gain = weight.double() + norm_offset(model.get_submodule(norm))
    return bool((gain - gain.mean()).abs().max() <= UNIFORM * gain.mean().abs())


def _refuse(problems: list[str], uneven: list[str]) -> None:
    """Raises ValueError where something stands in the way: all of it, layers that are alike once."""
    kinds = dict.fromkeys(masked(name) for name in uneven)
    if kinds:
        between = "between what writes into the stream and the stream, with a weight of its own for each channel:"
        problems = [*problems, f"a norm stands {between} {', '.join(kinds)}"]
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))


@torch.no_grad()
def unturned(model: PreTrainedModel, seed: int) -> Callable[[Tensor], Tensor]:
    """What takes the last hidden states [..., width] of the model that `rotate` makes of this one back to its own.

    They differ by the rotation, and by the last norm's channel weights, which have gone into the head.

    Args:
        model: as it was before; unchanged.
    """
    width, final_norm = _embedding(model).embedding_dim, _last_norm(model)
    rotation = random_rotation(width, seed)
    gain = torch.ones(width) if final_norm is None else _gain(final_norm)[0]
    return lambda states: rotation.back(states) * gain.to(states)


def _last_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm with channel weights whose output the head reads; found by running the model."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by address; the tensors are kept, so that none is used twice
    read: list[nn.Module] = []

    def make(norm: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            made[out.data_ptr()] = norm, out

    def see(_: nn.Module, args: Any) -> None:
        read.extend(norm for norm, out in [made.get(args[0].data_ptr(), (None, None))] if norm is not None)

    handles = [module.register_forward_hook(make) for module in model.modules() if is_norm(module)]
    handles.append(model.get_output_embeddings().register_forward_pre_hook(see))
    _logits(model)
    for handle in handles:
        handle.remove()
    return read[0] if read else None


def _logits(model: PreTrainedModel) -> Tensor:
    vocabulary = _embedding(model).num_embeddings
    tokens = torch.randint(vocabulary, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    return model(input_ids=tokens, use_cache=False).logits


def _level(norm: nn.Module, rotation: Rotation) -> Tensor | None:
    """Give a norm the same weight for each channel, and return what its readers' columns must be multiplied by.

    A bias is divided by that and rotated. None: it has no weights.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is None:
        return None
    gain, level = _gain(norm)
    weight.fill_(level)
    if bias is not None:
        bias.copy_(rotation.turn(bias.double() / gain))
    return gain


def _gain(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """By what a norm multiplies each channel more than a level, float64 [width], and the weight that gives the level.

    The level is the root mean square over channels, so that its readers' weights stay as large as they were: their
    learning rate is for such.
    """
    offset = norm_offset(norm)
    weight: Tensor = norm.weight  # type: ignore[assignment]
    weights = weight.double() + offset
    level = (weights.square().mean().sqrt() - offset).to(FLOAT_DTYPE).double()  # as the export holds it
    return weights / (level + offset), level
