"""A scheme as params.yaml may have it: short, or long with every field, and overrides with some of them."""

import dataclasses
import typing
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, InstanceOf, Tag, TypeAdapter
from pydantic.dataclasses import dataclass

from pipeline.knobs.kinds import FORBID, Flag, Int, Number, Text, whole
from pipeline.knobs.scheme import Activations, KVCache, Override, Scheme, Weights, from_short

CHECKED = {bool: Flag, int: Annotated[Int, Field(ge=0)], float: Annotated[Number, Field(gt=50, le=100)]}
BLOCK = Annotated[Int, Field(ge=2)]
OPTIONAL = ("keys", "block")  # fields that a long form need not have, either
LEFT_OUT = object()  # the value of a field that is not there


def _fields(part: type, default: Any = dataclasses.MISSING) -> type:
    """The fields of a part of a scheme as they are checked: all but OPTIONAL due, or none where there is a default."""
    hints = typing.get_type_hints(part)
    checked = {name: _bits(hint) if name == "bits" else CHECKED.get(hint, hint) for name, hint in hints.items()}
    if "block" in checked:
        checked["block"] = BLOCK
    defaults = dict.fromkeys(OPTIONAL, LEFT_OUT)
    fields = [(name, hint, dataclasses.field(default=defaults.get(name, default))) for name, hint in checked.items()]
    made = dataclasses.make_dataclass(part.__name__, fields, frozen=True, kw_only=True)
    return dataclass(made, frozen=True, kw_only=True, config=FORBID)


def _bits(choices: Any) -> Any:
    return Annotated[choices, BeforeValidator(whole)]


def _names_and_changes(entry: Any) -> Any:
    """Refuse what is no override at all, which a list of missing fields would not tell."""
    parts = isinstance(entry, dict) and {"weights", "activations"} & entry.keys()
    if not parts or not isinstance(entry.get("match"), str):
        raise ValueError(f"expected a match with weights or activations, got {entry!r}")
    return entry


WeightsLong, ActivationsLong, KVCacheLong = (_fields(part) for part in (Weights, Activations, KVCache))
WeightsPart, ActivationsPart = (_fields(part, LEFT_OUT) for part in (Weights, Activations))


@dataclass(frozen=True, kw_only=True, config=FORBID)
class OverrideLong:
    """Of its parts, the fields that differ from the scheme's own."""

    match: Text
    weights: WeightsPart = LEFT_OUT  # type: ignore[valid-type]
    activations: ActivationsPart = LEFT_OUT  # type: ignore[valid-type]

    def over(self, base: "SchemeLong") -> Override:
        """The override whole, with the scheme's own fields where it says nothing."""
        parts = {"weights": Weights, "activations": Activations}
        return Override(
            self.match,
            **{
                part: kind(**{**_values(getattr(base, part)), **_values(getattr(self, part))})
                for part, kind in parts.items()
                if getattr(self, part) is not LEFT_OUT
            },
        )


@dataclass(frozen=True, kw_only=True, config=FORBID)
class SchemeLong:
    """The long form."""

    weights: WeightsLong  # type: ignore[valid-type]
    activations: ActivationsLong  # type: ignore[valid-type]
    kv_cache: KVCacheLong  # type: ignore[valid-type]
    embedding: WeightsLong | None = None  # type: ignore[valid-type]
    head: WeightsLong | None = None  # type: ignore[valid-type]
    overrides: list[Annotated[OverrideLong, BeforeValidator(_names_and_changes)]] = Field(default_factory=list)

    def scheme(self) -> Scheme:
        """As the library knows it."""
        return Scheme(
            Weights(**_values(self.weights)),
            Activations(**_values(self.activations)),
            KVCache(**_values(self.kv_cache)),
            tuple(override.over(self) for override in self.overrides),
            *(Weights(**_values(part)) if part is not None else Weights(0) for part in (self.embedding, self.head)),
        )


def _values(part: Any) -> dict[str, Any]:
    """The fields that are there."""
    return {name: value for name, value in vars(part).items() if value is not LEFT_OUT}


def _form(value: Any) -> str:
    """In which form a scheme is given; `made` where it is one, as in a copy of knobs with others changed."""
    return "made" if isinstance(value, Scheme) else "short" if isinstance(value, str) else "long"


if TYPE_CHECKING:
    AnyScheme = Scheme
else:
    AnyScheme = Annotated[
        Annotated[InstanceOf[Scheme], Tag("made")]
        | Annotated[Text, AfterValidator(from_short), Tag("short")]
        | Annotated[SchemeLong, AfterValidator(SchemeLong.scheme), Tag("long")],
        Discriminator(_form),
    ]


def of(value: Any) -> Scheme:
    """A scheme as params.yaml may have it, short or long.

    Raises:
        ValueError: it is none.
    """
    return TypeAdapter(AnyScheme).validate_python(value)
