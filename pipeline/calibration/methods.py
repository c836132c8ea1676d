"""The PTQ methods: which rescaling comes first, if any, and how codes are chosen then."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.rounding.methods import ROUNDINGS, Rounded


@dataclass(frozen=True)
class Method:
    """A PTQ method: which rescaling comes first, if any, and how codes are chosen then."""

    rounding: str
    rescaling: str | None = None

    @property
    def needs_inputs(self) -> bool:
        """Whether it looks at what the linears read."""
        return self.rescaling is not None or self.rounding in ("gptq", "clip")

    @property
    def uses_fisher(self) -> bool:
        """Whether it can weigh errors by the Fisher information. A rescaling would change what that is."""
        return self.rounding == "gptq" and self.rescaling is None


PTQ_METHODS = {
    "rtn": Method("rtn"),
    "mse": Method("mse"),
    "gptq": Method("gptq"),
    "awq": Method("clip", "awq"),
    "smoothquant": Method("rtn", "smoothquant"),
    "awq+gptq": Method("gptq", "awq"),
    "smoothquant+gptq": Method("gptq", "smoothquant"),
}


@dataclass(frozen=True)
class Options:
    """How to calibrate.

    method: a name of PTQ_METHODS. gptq: keyword arguments of GPTQ. migration: SmoothQuant's strength. batch: sequences
    a forward. dtype: of the forward's autocast. measure: whether to report errors, for which a method that does not
    look at the inputs needs them, too.
    """

    method: str
    gptq: dict[str, Any]
    migration: float = 0.5
    batch: int = 8
    dtype: str = "float32"
    measure: bool = True


def round_weight(
    name: str,
    weight: Tensor,
    scheme: Weights,
    options: Options,
    hessian: Tensor | None = None,
    outputs: Tensor | None = None,
) -> Rounded:
    """Round a weight [out, in] by the method of the options.

    Args:
        name: of its module, for errors.
        hessian: float32 [in, in] of its inputs; None where they were not looked at.
        outputs: float32 [out, out], how its outputs' errors count together, if the method weighs them.

    Raises:
        ValueError: the method needs inputs and there are none, or the weight cannot be rounded.
    """
    method = PTQ_METHODS[options.method]
    if method.needs_inputs and hessian is None:
        raise ValueError(f"{name} is not called on the calibration tokens; leave it in float by an override")
    try:
        weight = weight.detach().clone()
        return ROUNDINGS[method.rounding](weight, hessian, scheme, outputs=outputs, **options.gptq)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
