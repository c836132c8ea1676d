"""All signals of a float model and of any number of models quantized from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from pipeline.artifacts import contract
from pipeline.calibration.rotation import rotate
from pipeline.losses.chunked import LossWeights
from pipeline.models import layout
from pipeline.quant.model import QuantizedModel
from pipeline.signals import plan
from pipeline.signals.gradients import Probe, Row
from pipeline.signals.labels import Text
from pipeline.signals.rescaled import rescales
from pipeline.signals.sensitivity import one_layer_on
from pipeline.signals.table import COLUMNS, FLOAT


@dataclass(frozen=True)
class Variant:
    """A quantized model: what loads it, whether its weights were rescaled against its norms, and the seed by which the
    float model was rotated before it was quantized (None: it was not)."""

    load: Callable[[], QuantizedModel]
    rescaled: bool = False
    rotation: int | None = None


def variants(entries: Sequence[str]) -> dict[str, Variant]:
    """Variants as written in a command, `name=folder` each.

    Raises:
        ValueError: an entry is no such thing, a name stands twice, or a folder holds no quantized model.
    """
    split = [entry.partition("=") for entry in entries]
    names = [name for name, _, _ in split]
    bad = [entry for entry, (name, _, folder) in zip(entries, split, strict=True) if not (name and folder)]
    if bad or FLOAT in names or len({*names}) < len(names):
        raise ValueError(
            f"expected variants as name=folder, each name once and none called {FLOAT!r}, got {[*entries]}"
        )
    return {name: _variant(folder) for name, _, folder in split}


def _variant(folder: str) -> Variant:
    facts = contract.reading(folder, contract.QUANTIZED)
    return Variant(
        lambda: QuantizedModel.load(folder)[0], rescales(facts.get("method", "")), facts.get("rotation_seed")
    )


@dataclass(frozen=True)
class Options:
    """What to measure.

    weights: of the loss. sensitivity_sequences: on which one layer at a time is quantized; 0: that is left out. widths:
    bits for which the loss of each linear is predicted; none: that is left out.
    """

    weights: LossWeights
    sensitivity_sequences: int = 0
    widths: Sequence[int] = ()


@dataclass(frozen=True)
class Signals:
    """table: see table.py. curves: predicted losses of the linears that the first variant quantizes."""

    table: pd.DataFrame
    curves: list[plan.Curve]


GRADIENTS, LAYER, CURVE = 140, 20, 1  # what takes as long: gradients and a layer of one_layer_on, a sequence; a curve


def steps(teacher: PreTrainedModel, variants: Mapping[str, Variant], text: Text, options: Options) -> int:
    """By how much `probe` advances (less where the first variant leaves linears in float)."""
    floats = {None, *(variant.rotation for variant in variants.values())}
    sequences, few = len(text.tokens), min(options.sensitivity_sequences, len(text.tokens))
    layers = len(variants) * len(layout.decoder_layers(teacher)[1])
    curves = len(layout.linears(teacher)) if options.widths and variants else 0
    return GRADIENTS * (len(variants) + len(floats)) * sequences + LAYER * layers * few + CURVE * curves


def probe(
    teacher: PreTrainedModel,
    load_float: Callable[[], PreTrainedModel],
    variants: Mapping[str, Variant],
    text: Text,
    options: Options,
    advance: Callable[[int], object],
) -> Signals:
    """Measure the signals of a float model and of models quantized from it, one of which is held at a time.

    A model that was quantized from the rotated float model is compared with that one, whose own signals are not told.

    Args:
        teacher: the float model. load_float: gives another one like it, each time.
        variants: by name. The curves are for the grids of the first.
        advance: called after each piece of the work with its part of `steps`.

    Raises:
        ValueError: a statistic is not finite.
    """
    probed: dict[int | None, Probe] = {None: Probe(teacher, text, options.weights)}

    def by_gradients(sequences: int) -> None:
        advance(GRADIENTS * sequences)

    def by_layer(sequences: int) -> None:
        advance(LAYER * sequences)

    def by_curve() -> None:
        advance(CURVE)

    rows = probed[None].float_model(by_gradients)
    first = slice(options.sensitivity_sequences)
    few = Text(text.tokens[first], text.valid[first], text.batch)
    curves: list[plan.Curve] = []
    for i, (name, variant) in enumerate(variants.items()):
        quantized = variant.load()
        if variant.rotation is not None and variant.rotation not in probed:
            probed[variant.rotation] = Probe(rotate(load_float(), variant.rotation), text, options.weights)
            probed[variant.rotation].float_model(by_gradients)
        base = probed[variant.rotation]
        if i == 0 and options.widths:
            grids = quantized.schemes
            curves = plan.curves(base.teacher, base.gradients, grids, text.predicted, options.widths, by_curve)
        costs = one_layer_on(base.teacher, quantized, few, by_layer) if len(few.tokens) else {}
        model = load_float()
        undo = quantized.put_into(model)
        mine = base.quantized(name, model, variant.rescaled, by_gradients)
        undo()
        rows += mine + _of_layers(name, teacher, mine, costs, text.predicted)
    return Signals(_finite(pd.DataFrame(rows, columns=COLUMNS)), curves)


def _of_layers(
    variant: str, teacher: PreTrainedModel, rows: list[Row], costs: dict[int, float], tokens: int
) -> list[Row]:
    """Of each layer: the KL with it alone quantized, and the KL that first-order sensitivity predicts for it."""
    prefix, layers = layout.decoder_layers(teacher)
    predicted = dict.fromkeys(range(len(layers)), 0.0)
    for _, layer, _, _, _, statistic, value in rows:
        if statistic == "first_order":
            predicted[layer] += tokens / 2 * value
    statistics = {"first_order_kl": predicted, "one_layer_kl": costs}
    return [
        (variant, layer, "layer", f"{prefix}.{layer}", "layer", statistic, value)
        for statistic, values in statistics.items()
        for layer, value in values.items()
    ]


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    bad = table[~np.isfinite(table.value)]
    if len(bad):
        first = bad.iloc[0]
        raise ValueError(
            f"{len(bad)} statistics are not finite, the first of them {first.statistic} of the {first.tensor} of "
            f"{first['name']} in {first.variant}; are the models sound?"
        )
    return table
