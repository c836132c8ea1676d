"""What writes and what reads a model's residual stream: found by changing its parameters and running it, not by names.

The first layer of each kind runs alone, with what its norms make held as it was, so that a change stays where it is.
- A parameter writes along a dimension where a vector, multiples of which are added along it, comes out as a multiple of
  that vector at every token.
- It reads a norm along a dimension where a vector that is at right angles to all that the norm made changes nothing,
  though another one does.
- A norm stands between writers and the stream (a post-norm) if a vector added to what it makes comes out as that.
So a linear, a fused one, experts in one tensor with either dimension first, and biases are all told in one way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.calibration.probing import Probe, Stream
from pipeline.models import layout

TOKENS = 16  # that the model runs on: fewer than its channels, so that some vectors are at right angles to all


class _Stop(Exception):
    """Ends a forward once the first layer's input is known."""


@dataclass
class _Layer:
    """What a layer was called with, and what it gave."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    out: Any = None

    def call(self, layer: nn.Module, push: Tensor | None = None) -> Tensor:
        """Run the layer again, on hidden states to which `push` [width] is added."""
        named = "hidden_states" in self.kwargs
        states = self.kwargs["hidden_states"] if named else self.args[0]
        states = states.clone() if push is None else states + push  # a layer may add to them in place
        if named:
            return _states(layer(*self.args, **{**self.kwargs, "hidden_states": states}))
        return _states(layer(states, *self.args[1:], **self.kwargs))


def _states(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def find(model: PreTrainedModel) -> Stream:
    """What writes and reads the residual stream of a float32 model, which is as it was when this returns.

    Raises:
        ValueError: it is none that runs layer after layer.
    """
    width = model.get_input_embeddings().embedding_dim
    few = max(2, min(TOKENS, width // 2))
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (1, few), generator=torch.Generator().manual_seed(0))
    prefix, layers = layout.decoder_layers(model)
    calls = _calls(model, list(layers), tokens)
    uncalled = [f"{prefix}.{i}" for i, layer in enumerate(layers) if layer not in calls]
    if uncalled:
        raise ValueError(f"the model does not call {', '.join(uncalled[:3])}")
    states = _states(next(iter(calls.values())).out)
    if states.ndim != 3 or states.shape[-1] != width:
        raise ValueError(f"its embeddings have {width} channels, and its layers give {list(states.shape[2:])}")
    names = {module: name for name, module in model.named_modules()}
    stream = _outside(model, tokens, calls, width)
    kinds: dict[Any, tuple[str, Stream]] = {}
    for layer in layers:
        kind = type(layer), tuple((name, p.shape) for name, p in layer.named_parameters())
        if kind not in kinds:
            kinds[kind] = names[layer], _inside(layer, names[layer], calls[layer], width)
            stream.problems += kinds[kind][1].problems
        stream.add(kinds[kind][1].moved(kinds[kind][0], names[layer]))
    return stream


def _calls(model: PreTrainedModel, layers: list[nn.Module], tokens: Tensor) -> dict[nn.Module, _Layer]:
    calls: dict[nn.Module, _Layer] = {}

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        calls[layer] = _Layer(args, kwargs, out)

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _inside(layer: nn.Module, name: str, call: _Layer, width: int) -> Stream:
    """Of a layer."""
    with Probe(lambda: call.call(layer), layer, width, name) as probe:
        problems = probe.direct(lambda push: call.call(layer, push))
        stream = probe.sides(dict(layer.named_parameters(prefix=name)))
    return replace(stream, problems=problems)


def _outside(model: PreTrainedModel, tokens: Tensor, calls: dict[nn.Module, _Layer], width: int) -> Stream:
    """Of what comes before the first layer, and after the last one."""
    prefix = f"{layout.decoder_layers(model)[0]}."
    parameters = model.named_parameters(remove_duplicate=False)
    own = {name: parameter for name, parameter in parameters if not name.startswith(prefix)}
    stream = _before(model, tokens, next(iter(calls)), own, width)
    stream.add(_after(model, tokens, calls, own, width))
    return stream


def _before(
    model: PreTrainedModel, tokens: Tensor, first_layer: nn.Module, own: dict[str, nn.Parameter], width: int
) -> Stream:
    """Of what comes before the first layer; `own` are the parameters outside the layers, by name."""
    entering: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
        raise _Stop

    def enter() -> Tensor:
        handle = first_layer.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            model(input_ids=tokens, use_cache=False)
        except _Stop:
            return entering.pop()
        finally:
            handle.remove()
        raise ValueError("the model does not call its first layer twice alike")

    head = layout.head(model)
    tied = {f"{head.name}.weight"} if head else set()
    with Probe(enter, model, width) as probe:
        return probe.sides({name: p for name, p in own.items() if name not in tied})


def _after(
    model: PreTrainedModel, tokens: Tensor, calls: dict[nn.Module, _Layer], own: dict[str, nn.Parameter], width: int
) -> Stream:
    """Of what comes after the last layer: it reads the stream, and writes nothing into it."""
    last_layer, embeddings = [*calls][-1], _embeddings(model)

    def leave() -> Tensor:
        return model(input_ids=tokens, use_cache=False).logits

    def pushed(push: Tensor) -> Tensor:
        out, states = calls[last_layer].out, _states(calls[last_layer].out) + push
        calls[last_layer].out = (states, *out[1:]) if isinstance(out, tuple) else states
        try:
            return leave()
        finally:
            calls[last_layer].out = out

    with _replayed(calls), Probe(leave, model, width) as probe:
        problems = probe.direct(pushed, ends=True)
        left = probe.sides({name: p for name, p in own.items() if name not in embeddings})
    return Stream(readers=left.readers, problems=problems)


def _embeddings(model: PreTrainedModel) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}


@contextmanager
def _replayed(calls: dict[nn.Module, _Layer]) -> Iterator[None]:
    """Within: each layer gives what it gave, whatever it reads."""
    for layer, call in calls.items():
        layer.forward = lambda *_, call=call, **__: call.out
    try:
        yield
    finally:
        for layer in calls:
            del layer.forward
