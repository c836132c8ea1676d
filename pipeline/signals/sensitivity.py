"""One-layer-on sensitivity: what it costs to quantize the weights of one decoder layer alone.

The cost is KL(teacher || teacher with that layer quantized), in nats a token. The layers before it give what they gave
in the teacher, so they are not run again, and the ones after it run as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models import forward, layout
from pipeline.quant.model import QuantizedModel, state
from pipeline.signals.labels import Text

CHUNK = 256  # tokens whose logits are held at once, beside the teacher's of a whole batch


@torch.no_grad()
def one_layer_on(
    model: PreTrainedModel, quantized: QuantizedModel, text: Text, advance: Callable[[int], object]
) -> dict[int, float]:
    """KL to the float model with one layer quantized at a time, by layer.

    A layer takes everything that the quantized model holds of it, since its norms may have been rescaled with its
    weights. Inputs and KV cache stay in float.

    Args:
        model: the float model; unchanged when this returns.
        advance: called after each layer of each batch, with its sequences.
    """
    prefix, layers = layout.decoder_layers(model)
    head = forward.head_weight(model)
    sums = dict.fromkeys(range(len(layers)), 0.0)
    for tokens, mask in zip(text.tokens.split(text.batch), text.valid.split(text.batch), strict=True):
        counted = mask[:, 1:]
        outputs, hidden = _outputs(model, layers, tokens)
        teacher = torch.log_softmax(hidden[:, :-1][counted] @ head.T, dim=-1)
        for index in range(len(layers)):
            with _quantized_layer(model, quantized, f"{prefix}.{index}."), _replayed(layers, outputs[:index]):
                changed = forward.hidden_states(model, tokens)[:, :-1][counted]
            sums[index] += _kl(teacher, changed, head)
            advance(len(tokens))
    tokens_predicted = int(text.valid[:, 1:].sum())
    return {index: value / tokens_predicted for index, value in sums.items()}


def _outputs(model: PreTrainedModel, layers: nn.ModuleList, tokens: Tensor) -> tuple[list[object], Tensor]:
    """What each layer gives, and the last hidden states."""
    outputs: list[object] = []
    handles = [layer.register_forward_hook(lambda _, __, out: outputs.append(out)) for layer in layers]
    hidden = forward.hidden_states(model, tokens)
    for handle in handles:
        handle.remove()
    return outputs, hidden


@contextmanager
def _replayed(layers: nn.ModuleList, outputs: list[object]) -> Iterator[None]:
    """Let the first layers give these outputs without running."""
    replayed = list(layers)[: len(outputs)]
    for layer, output in zip(replayed, outputs, strict=True):
        layer.forward = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for layer in replayed:
            del layer.forward  # the class's own is back


@contextmanager
def _quantized_layer(model: PreTrainedModel, quantized: QuantizedModel, prefix: str) -> Iterator[None]:
    """Let the parameters whose names begin so have the quantized model's numbers."""
    floats = {name: values for name, values in quantized.floats.items() if name.startswith(prefix)}
    weights = {f"{name}.weight": quantized.weight(name) for name in quantized.codes if name.startswith(prefix)}
    tensors = state(model)
    parameters = {name: tensors[name] for name in (*floats, *weights)}
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    try:
        for name, values in (*floats.items(), *weights.items()):
            parameters[name].copy_(values)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(before[name])


def _kl(teacher: Tensor, hidden: Tensor, head: Tensor) -> float:
    """Sum over tokens of KL(teacher || softmax(hidden head^T)); teacher: log-probabilities [tokens, vocabulary]."""
    total = 0.0
    for log_p, rows in zip(teacher.split(CHUNK), hidden.split(CHUNK), strict=True):
        log_q = (rows @ head.T).log_softmax(dim=-1)
        total += float(log_q.sub_(log_p).mul_(log_p.exp()).sum(dim=-1).double().sum())
    return -total
