"""The shape of tensors' distributions: kurtosis, standard deviation, absmax and the share of outliers.

Of every weight, of every linear's input, and of keys and values after rotary embedding, the tables of "Evaluating
Quantized LLMs" (2402.18158). Kurtosis is the plain fourth standardized moment, 3 for a Gaussian; the standard deviation
is the population's; outliers lie more than OUTLIER standard deviations from the mean.

Values come a batch at a time and are seen once. Moments are merged in float64 (Pebay, SAND2008-6212). Outliers are
counted exactly although mean and deviation are known only at the end: what may turn out to be one is kept.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from pipeline.models import layout

OUTLIER = 6.0
CHUNK = 2**19  # values that are held in float64 at once


class Moments:
    """Moments and outliers of values that come in parts.

    total: how many values will come, at most. With n of them seen, their variance s^2 and their mean m, all N values
    have S^2 >= n/N (s^2 + (m - M)^2), whatever is still to come. Hence |x - M| > OUTLIER S holds for no x within c s of
    m, where c^2 = OUTLIER^2 n/N - 1 (Cauchy-Schwarz), and such x need not be kept.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0
        self.mean = self.m2 = self.m3 = self.m4 = self.absmax = 0.0
        self.far: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Take in values of any shape."""
        values = values.detach().flatten()
        if not len(values):
            return
        for part in values.split(CHUNK):
            self._merge(part.double())
        least, greatest = (float(bound) for bound in values.aminmax())
        self.absmax = max(self.absmax, -least, greatest)
        reach = OUTLIER**2 * self.count / self.total - 1
        width = math.sqrt(reach * self.m2 / self.count) if reach > 0 else -1.0
        if greatest > self.mean + width or least < self.mean - width:
            self.far.append(values[(values > self.mean + width) | (values < self.mean - width)])

    def _merge(self, part: Tensor) -> None:
        b, mean = len(part), float(part.mean())
        centred = part - mean
        squares = centred * centred
        m2, m3, m4 = (float(torch.dot(x, y)) for x, y in ((centred, centred), (squares, centred), (squares, squares)))
        a, d = self.count, mean - self.mean
        n = a + b
        self.m4 += m4 + d**4 * a * b * (a * a - a * b + b * b) / n**3
        self.m4 += 6 * d * d * (a * a * m2 + b * b * self.m2) / n**2 + 4 * d * (a * m3 - b * self.m3) / n
        self.m3 += m3 + d**3 * a * b * (a - b) / n**2 + 3 * d * (a * m2 - b * self.m2) / n
        self.m2 += m2 + d * d * a * b / n
        self.mean += d * b / n
        self.count = n

    def statistics(self) -> dict[str, float]:
        """kurtosis (0 where all values are equal), std, absmax and outliers, a share of the values."""
        std = math.sqrt(self.m2 / self.count)
        far = sum(int(((part.double() - self.mean).abs() > OUTLIER * std).sum()) for part in self.far)
        return {
            "kurtosis": self.count * self.m4 / self.m2**2 if self.m2 else 0.0,
            "std": std,
            "absmax": self.absmax,
            "outliers": far / self.count,
        }


def statistics(values: Tensor) -> dict[str, float]:
    """The statistics of one tensor."""
    moments = Moments(values.numel())
    moments.add(values)
    return moments.statistics()


def valid_rows(x: Tensor, mask: Tensor) -> Tensor:
    """The rows of x [batch, seq, width], or [batch * seq, width], that a mask [batch, seq] holds: [tokens, width].

    An expert of a mixture reads some of the tokens, which cannot be told apart: all its rows count.
    """
    rows = x.flatten(0, -2)
    return rows[mask.flatten()] if len(rows) == mask.numel() and not bool(mask.all()) else rows


class _Recorder(DynamicCache):
    """A cache that shows keys and values to `see` and stores none; it keeps the states of layers without attention."""

    def __init__(self, model: PreTrainedModel, see: Callable[[int, Tensor, Tensor], None]) -> None:
        super().__init__(config=model.config)
        self.see = see

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.see(layer_idx, key_states, value_states)
        return key_states, value_states


class Watch:
    """The inputs of some linears and the keys and values of a model, while batches pass through it.

    tokens: how many will, at most. A model without attention has no keys and values. A model that does not run with a
    cache of ours (MiniMax) has them, but they are not looked at.
    """

    def __init__(self, model: PreTrainedModel, linears: list[layout.Linear], tokens: int) -> None:
        self.model, self.linears, self.tokens = model, linears, tokens
        self.inputs: dict[str, Moments] = {}
        self.cache: dict[tuple[int, str], Moments] = {}
        self._has_cache = _takes_recorder(model)

    @contextmanager
    def watching(self, mask: Tensor) -> Iterator[dict[str, Any]]:
        """Look at what passes; gives the arguments that the model's forward needs for it."""
        previous: dict[str, Any] = {"x": None}

        def see(linear: layout.Linear, x: Tensor) -> None:
            if previous["x"] is x:  # q, k and v read the same tensor
                self.inputs.setdefault(linear.name, self.inputs[previous["name"]])
                return
            previous.update(x=x, name=linear.name)
            _of(self.inputs, linear.name, self.tokens * x.shape[-1]).add(valid_rows(x, mask))

        def store(layer: int, key: Tensor, value: Tensor) -> None:
            for role, x in (("k", key), ("v", value)):
                rows = x.transpose(1, 2).flatten(2)  # (batch, tokens, kv_heads * head_dim)
                _of(self.cache, (layer, role), self.tokens * rows.shape[-1]).add(valid_rows(rows, mask))

        handles = [
            self.model.get_submodule(linear.name).register_forward_pre_hook(
                lambda _, args, linear=linear: see(linear, args[0]), prepend=True
            )
            for linear in self.linears
        ]
        try:
            yield {"past_key_values": _Recorder(self.model, store)} if self._has_cache else {}
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def _takes_recorder(model: PreTrainedModel) -> bool:
    """Whether a model runs with a cache of ours, and stores keys and values there."""
    stored, tokens = list[int](), torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    try:
        recorder = _Recorder(model, lambda layer, *_: stored.append(layer))
        layout.backbone(model)(input_ids=tokens, use_cache=False, past_key_values=recorder)
    except Exception:  # a model's code may fail in any way
        return False
    return bool(stored)


def _of(table: dict[Any, Moments], key: Any, total: int) -> Moments:
    if key not in table:
        table[key] = Moments(total)
    return table[key]
