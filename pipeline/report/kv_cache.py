"""What the KV cache takes by the length of the context: the model at hand, and LLaMA-7B, of which LLM-QAT speaks."""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from transformers import AutoConfig

from pipeline.knobs.scheme import KVCache
from pipeline.models.context import context_of
from pipeline.quant.cache_memory import FLOAT, LLAMA_7B, Shape, cache_bytes, shape
from pipeline.report.plots import svg

SCHEMES = {"float16": FLOAT, "KV8": KVCache(8), "KV4": KVCache(4)}
COLOURS = ("#333333", "#4c78a8", "#b01e3b", "#54a24b")
CLAIMED = (2048, 4096, 16384)  # tokens; of the last, LLM-QAT (2305.17888) says 8 GB in float16 and 2 GB at 4 bits
UNLIMITED = 16384  # tokens that are shown of a model that has no limit
STEPS = (64, 16, 4, 1)  # parts of its context at which a model's cache is counted
UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def section(teacher: Path, scheme: KVCache) -> dict[str, Any]:
    """For the page's template: a table by model and tokens, a picture, and what they show.

    Args:
        teacher: folder of the float model, of which the config is read. scheme: of the run; shown beside the others,
            unless it is one of them.
    """
    schemes = SCHEMES | ({} if scheme in SCHEMES.values() or not scheme.bits else {str(scheme): scheme})
    config = AutoConfig.from_pretrained(teacher)
    shapes: dict[str, tuple[Shape, list[int]]] = {}
    told = ""
    try:
        longest = context_of(config) or UNLIMITED
        shapes["this model"] = shape(config), sorted({max(longest // step, 1) for step in STEPS})
    except ValueError as error:
        told = f"{error}, so its own is not counted. "
    shapes["LLaMA-7B"] = LLAMA_7B, [*CLAIMED]
    rows = [["", "tokens", *schemes]]
    for name, (layers, lengths) in shapes.items():
        for tokens in lengths:
            sizes = [cache_bytes(layers, grid, tokens) for grid in schemes.values()]
            rows.append([name, f"{tokens:,}", *(_in_units(size) for size in sizes)])
    return {"rows": rows, "plot": picture(shapes, schemes), "note": told + NOTE}


NOTE = (
    "Of one sequence, with scales and zero points; KV8 and KV4 have a scale a token. Counted from what each layer "
    "keeps, which is to the byte what pipeline.quant.packed_cache.PackedCache stores. LLM-QAT (2305.17888) says of "
    "LLaMA-7B that the cache of 16K tokens takes 8 GB in float16, and 2 GB at 4 bits."
)


def picture(shapes: dict[str, tuple[Shape, list[int]]], schemes: dict[str, KVCache]) -> str:
    """Bytes by tokens, both on logarithmic scales: a panel a model, a line a scheme."""

    def draw(figure: Figure) -> None:
        axes: list[Axes] = [*figure.subplots(1, len(shapes), squeeze=False)[0]]
        for axis, (name, (layers, lengths)) in zip(axes, shapes.items(), strict=True):
            for (label, scheme), colour in zip(schemes.items(), COLOURS, strict=False):
                sizes = [cache_bytes(layers, scheme, tokens) for tokens in lengths]
                axis.plot(lengths, sizes, color=colour, marker=".", label=label)
            axis.set(title=name, xlabel="tokens", xscale="log", yscale="log")
            axis.xaxis.set_major_locator(FixedLocator(lengths))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter(FuncFormatter(lambda size, _: _in_units(size)))
        axes[0].set_ylabel("KV cache")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return svg(draw, (10, 3.2))


def _in_units(size: float) -> str:
    """Three digits, or all before the point: 2.00 GiB."""
    unit, name = next((unit, name) for unit, name in UNITS if size >= unit or unit == 1)
    digits = max(0, 2 - math.floor(math.log10(max(size / unit, 1))))
    return f"{size / unit:.{digits}f} {name}"
