"""What may stand where in params.yaml: numbers, texts, rates, freeze policies.

Nothing is converted but an integer to a float.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag

from pipeline.knobs import freezing

FORBID = ConfigDict(extra="forbid", allow_inf_nan=False)
Int = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Ints = Annotated[list[Int], Field(min_length=1)]


def _meant(value: Any) -> str:
    """Which arm of a union a value is meant for. A number in quotes is meant for the number."""
    if isinstance(value, list):
        return "list"
    return "name" if isinstance(value, str) and not _is_number(value) else "number"


def _is_number(text: str) -> bool:
    try:
        return bool(text.strip()) and float(text) == float(text)
    except ValueError:
        return False


def whole(value: Any) -> Any:
    """Refuse what equals a whole number and is none: True, 4.0, '4'."""
    if type(value) is not int:
        raise ValueError(f"expected int, got {value!r} ({type(value).__name__})")
    return value


def _readable(policy: freezing.Policy) -> freezing.Policy:
    if policy != freezing.AUTO:
        freezing.terms(policy)
    return policy


Rate = Annotated[
    Annotated[Number, Field(gt=0), Tag("number")] | Annotated[Literal["auto"], Tag("name")], Discriminator(_meant)
]
Terms = Annotated[list[Text], Field(min_length=1)]
Policy = Annotated[
    Annotated[Text, Tag("name")] | Annotated[Terms, Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "name"),
    AfterValidator(_readable),
]
Dtype = Literal["auto", "bfloat16", "float32"]
Method = Literal["rtn", "mse", "gptq", "awq", "smoothquant", "awq+gptq", "smoothquant+gptq"]
Format = Literal["compressed-tensors", "gguf", "onnx", "mlx", "qnn", "executorch", "dequantized"]
Variant = Literal["rtn", "ptq", "student"]
Divergence = Literal["forward", "reverse", "symmetric"]
Chunk = Annotated[Literal[32, 64, 128, 256], BeforeValidator(whole)]
PlanBits = Annotated[Literal[2, 3, 4, 5, 6, 7, 8], BeforeValidator(whole)]
Group = Literal["basic", "emergent", "trust", "dialogue", "long"]
Names = Annotated[
    Annotated[Literal["auto"], Tag("name")] | Annotated[Terms, Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "name"),
]
