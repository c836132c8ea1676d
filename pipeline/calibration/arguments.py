"""What each layer of a decoder is called with beside its hidden states, in every batch, without running the layers."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models import forward, layout

TOLERANCE = 1e-2  # of the last layer's output: what rounding may change between a whole forward and one layer by layer
Call = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


class _Stop(Exception):
    """Ends a forward once the last layer's arguments are known."""


@dataclass(frozen=True)
class Arguments:
    """Positional arguments after the hidden states, and those by name. What layers share, they hold once."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def call(self, layer: nn.Module, states: Tensor) -> Tensor:
        """Run a layer on hidden states; returns its own."""
        return hidden(layer(states, *self.args, **self.kwargs))

    def widened(self) -> "Arguments":
        """The same in float32. What the layers share to write into, keys and values of a layer that others read, is a
        copy."""
        return Arguments(_widened(self.args), {name: _widened(value) for name, value in self.kwargs.items()})


def hidden(out: Any) -> Tensor:
    """The hidden states of what a layer returns."""
    return out[0] if isinstance(out, tuple) else out


def collect(
    model: PreTrainedModel, batches: Sequence[Tensor], dtype: str
) -> tuple[list[Tensor], dict[nn.Module, list[Arguments]]]:
    """The hidden states that enter the first layer, and the arguments of each layer: of every batch.

    Args:
        batches: tokens [batch, length]; the first one, a sequence or a few, is also run whole, to compare.
        dtype: of the forward's autocast.

    Raises:
        ValueError: the decoder is more than its layers, one after the other, each once: an argument comes from the
            layers before, or something happens between them.
    """
    layers = list(layout.decoder_layers(model)[1])
    calls, outputs = _run_whole(model, layers, batches[0], dtype)
    entering: list[Tensor] = []
    arguments: dict[nn.Module, list[Arguments]] = {layer: [] for layer in layers}

    def take(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states, own = _split(args, kwargs)
        arguments[layer].append(own)
        if layer is layers[0]:
            entering.append(states)
        if layer is layers[-1]:
            raise _Stop
        return _as(outputs[layer], states)

    with _instead(layers, take):
        for part in batches:
            with forward.autocast(dtype), suppress(_Stop):
                model(input_ids=part, use_cache=False)
    problem = f"{type(model).__name__} cannot be quantized a layer at a time"
    changing = [i for i, layer in enumerate(layers) if not _same(calls[layer], arguments[layer][0])]
    if changing:
        raise ValueError(f"{problem}: what layer {changing[0]} is called with comes from the layers before it")
    states = entering[0]
    for layer in layers:
        with forward.autocast(dtype):
            states = arguments[layer][0].call(layer, states)
    whole = hidden(outputs[layers[-1]])
    moved = (states - whole).nan_to_num(posinf=0, neginf=0).norm() / whole.nan_to_num(posinf=0, neginf=0).norm()
    if states.shape != whole.shape or float(moved) > TOLERANCE:
        raise ValueError(f"{problem}: something happens to its hidden states between the layers")
    return entering, arguments


def head_inputs(
    model: PreTrainedModel, batches: Sequence[Tensor], states: Sequence[Tensor], dtype: str
) -> Iterator[Tensor]:
    """What the head reads where the last layer gives these hidden states [batch, length, hidden]: of every batch.

    Raises:
        ValueError: the model does not call its head.
    """
    layers, head = list(layout.decoder_layers(model)[1]), forward.head_module(model)
    outputs = _run_whole(model, layers, batches[0][:1], dtype)[1]
    read, waiting = list[Tensor](), iter(states)

    def take(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _as(outputs[layer], next(waiting) if layer is layers[-1] else _split(args, kwargs)[0])

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        read.append(args[0])
        raise _Stop

    handle = head.register_forward_pre_hook(stop)
    try:
        for part in batches:
            with _instead(layers, take), forward.autocast(dtype), suppress(_Stop):
                model(input_ids=part, use_cache=False)
            if not read:
                raise ValueError(f"{type(model).__name__} does not call its head; set the bits of scheme.head to 0")
            yield read.pop()
    finally:
        handle.remove()


def _run_whole(
    model: PreTrainedModel, layers: list[nn.Module], tokens: Tensor, dtype: str
) -> tuple[dict[nn.Module, Arguments], dict[nn.Module, Any]]:
    """The arguments and the output of each layer in a plain forward; hidden states of the last one alone are kept."""
    calls: dict[nn.Module, Arguments] = {}
    outputs: dict[nn.Module, Any] = {}
    order: list[nn.Module] = []

    def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        order.append(layer)
        calls[layer] = _split(args, kwargs)[1]
        outputs[layer] = out if layer is layers[-1] else tuple(None for _ in out) if isinstance(out, tuple) else None

    handles = [layer.register_forward_hook(see, with_kwargs=True) for layer in layers]
    try:
        with forward.autocast(dtype):
            model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if order != layers:
        raise ValueError(
            f"{type(model).__name__} cannot be quantized a layer at a time: it does not call its {len(layers)} layers "
            "one after the other, each once"
        )
    return calls, outputs


@contextmanager
def _instead(layers: list[nn.Module], take: Call) -> Iterator[None]:
    """Within: a layer that is called gives its arguments to `take`, and returns what that returns."""
    for layer in layers:
        layer.forward = lambda *args, layer=layer, **kwargs: take(layer, args, kwargs)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _as(whole: Any, states: Tensor) -> Any:
    """Hidden states as a layer returns them whose output is `whole`: alone, or first in a tuple."""
    return (states, *[None] * (len(whole) - 1)) if isinstance(whole, tuple) else states


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Arguments]:
    """The hidden states, and the rest."""
    if "hidden_states" in kwargs:
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return kwargs["hidden_states"], Arguments(args, others)
    return args[0], Arguments(args[1:], dict(kwargs))


def _same(ours: Any, theirs: Any) -> bool:
    """Whether the tensors of two calls are the same. What a layer may write into (a dict, a cache) is not looked at."""
    if isinstance(ours, Arguments):
        return ours.kwargs.keys() == theirs.kwargs.keys() and all(
            _same(a, b) for a, b in [(ours.args, theirs.args), *((v, theirs.kwargs[k]) for k, v in ours.kwargs.items())]
        )
    if isinstance(ours, Tensor):
        return (
            isinstance(theirs, Tensor) and ours.shape == theirs.shape and torch.allclose(ours, theirs, equal_nan=True)
        )
    if isinstance(ours, (tuple, list)):
        return len(ours) == len(theirs) and all(_same(a, b) for a, b in zip(ours, theirs, strict=True))
    return True


def _widened(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_widened(part) for part in value)
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied.update({key: _widened(part) for key, part in value.items()})
        return copied
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
