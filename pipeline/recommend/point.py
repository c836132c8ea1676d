"""One way to quantize, of those that a laboratory tries, and how a person reads it."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.knobs.scheme import Scheme

SHORT_DYNAMIC = 8  # inputs of so many bits at most have a scale a token in the short form of a scheme


@dataclass(frozen=True)
class Point:
    """One way to quantize.

    Attributes:
        name: of the experiment. scheme: as params.yaml has it. method, rotation: of calibrate.
        grids: the scheme, read. kl: to the teacher, on held-out text; nan: not known.
    """

    name: str
    scheme: str
    method: str
    rotation: str
    grids: Scheme
    kl: float

    @property
    def bits(self) -> tuple[int, int, int]:
        """Of weights, inputs and KV cache; 0: float."""
        return self.grids.weights.bits, self.grids.activations.bits, self.grids.kv_cache.bits

    @property
    def written(self) -> tuple[str, str, str]:
        """Weights, inputs and KV cache in a few letters, such as W4g64, A8 static and KV4, each with its exceptions;
        empty: float."""
        weights, inputs, cache = _written(self.grids)
        overrides = self.grids.overrides
        return (
            weights and weights + _exceptions(override.match for override in overrides if override.weights),
            inputs and inputs + _exceptions(override.match for override in overrides if override.activations),
            cache,
        )

    @property
    def label(self) -> str:
        """As a person reads it."""
        short = self.scheme if not self.scheme.startswith("{") else _short(self.grids)
        by = f"{short}, {self.method}" if " " in short else f"{short} {self.method}"
        return by + ("" if self.rotation in ("none", "") else ", rotated")


def _short(scheme: Scheme) -> str:
    """A scheme that has no short form, in a few letters."""
    return "".join(_written(scheme)) + _exceptions(override.match for override in scheme.overrides)


def _written(scheme: Scheme) -> tuple[str, str, str]:
    """Weights, inputs and KV cache, as the short form has them, with what it does not tell; empty: float."""
    weights, inputs, cache = scheme.weights, scheme.activations, scheme.kv_cache
    usual = inputs.dynamic == (inputs.bits <= SHORT_DYNAMIC)
    of_inputs = "" if usual else " dynamic" if inputs.dynamic else " static"
    of_cache = (f"g{cache.group}" if cache.group else "") + ("" if cache.symmetric else " asymmetric")
    of_cache += ", keys per channel" if cache.keys == "channel" else ""
    return (
        f"W{weights.bits}" + (f"g{weights.group}" if weights.group else "") if weights.bits else "",
        f"A{inputs.bits}{of_inputs}" if inputs.bits else "",
        f"KV{cache.bits}{of_cache}" if cache.bits else "",
    )


def _exceptions(matches: Iterable[str]) -> str:
    named = ", ".join(matches)
    return f", {named} apart" if named else ""
