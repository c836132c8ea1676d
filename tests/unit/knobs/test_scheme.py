from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.knobs.scheme import Activations, KVCache, Override, Scheme, Weights, from_short

LINEARS = [(f"model.layers.{i}.{name}_proj", name.rsplit(".", 1)[-1]) for i in (0, 1, 11) for name in
           ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")]  # fmt: skip
BASE = from_short("W4A8")


def overridden(*overrides: Override) -> Scheme:
    return Scheme(BASE.weights, BASE.activations, BASE.kv_cache, overrides)


def named_by(match: str) -> list[str]:
    return [name for name, role in LINEARS if Override(match, Weights(8)).names(name, role)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("W4", Scheme(Weights(4), Activations(0), KVCache(0))),
        ("W4A16", Scheme(Weights(4, True, 0), Activations(16, True, False, "split"))),
        ("W2A8", Scheme(Weights(2), Activations(8, dynamic=True))),
        ("W8A4", Scheme(Weights(8), Activations(4, dynamic=True))),
        ("W4KV4", Scheme(Weights(4), Activations(0), KVCache(4))),
        ("W3g128A16KV8", Scheme(Weights(3, group=128), Activations(16), KVCache(8, True, 0))),
        ("W4g0", Scheme(Weights(4))),
        ("W4E8H6", Scheme(Weights(4), embedding=Weights(8), head=Weights(6))),
        ("W4H8", Scheme(Weights(4), head=Weights(8))),
        (
            "W4g64A8KV4E6g32H5g16",
            Scheme(
                Weights(4, group=64),
                Activations(8, dynamic=True),
                KVCache(4),
                embedding=Weights(6, group=32),
                head=Weights(5, group=16),
            ),
        ),
    ],
)
def test_a_short_scheme_is_what_it_says(text: str, expected: Scheme):
    assert from_short(text) == expected


@given(
    st.integers(2, 8),
    st.sampled_from([None, 32, 64, 128]),
    st.sampled_from([None, 4, 5, 6, 7, 8, 16]),
    st.sampled_from([None, *range(2, 9)]),
)
@settings(max_examples=300)
def test_every_short_scheme_reads_part_by_part(bits: int, group: int | None, activations: int | None, kv: int | None):
    parts = [("W", bits), ("g", group), ("A", activations), ("KV", kv)]
    scheme = from_short("".join(f"{letter}{value}" for letter, value in parts if value is not None))
    assert scheme.weights == Weights(bits, True, group or 0)
    assert scheme.activations == Activations(activations or 0, dynamic=activations is not None and activations <= 8)
    assert scheme.kv_cache == KVCache(kv or 0)
    assert scheme.overrides == ()


@pytest.mark.parametrize(
    "text",
    ["", "A8", "KV4", "4", "w4a8", "W", "W4A", "W4g", "W4Ag8", "W4A8g64", "W4KV4A8", "W-4", "W4.0", "W4 A8", "W4A8KV4x",
     " W4", "W4\n", "W4,A8", "E8", "W4H8E8", "W4E8A8", "W4E", "W4Eg8", "W4Hg8", "W4E8g", "W4e8"],
)  # fmt: skip
def test_a_text_that_is_no_scheme_is_answered_with_some_that_are(text: str):
    with pytest.raises(ValueError, match="is no scheme; write it as W4, W4A8E8H8, W4g128A8KV4, or long") as caught:
        from_short(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("W9", ["W9 (there are 2, 3, 4, 5, 6, 7, 8)"]),
        ("W1A8", ["W1 (there are 2, "]),
        ("W0A8", ["W0 (there are 2, 3, 4, 5, 6, 7, 8)"]),
        ("W16KV4", ["W16 (there"]),
        ("W4A9", ["A9 (there are 4, 5, 6, 7, 8, 16; leave A out for float)"]),
        ("W4A3", ["A3 (there"]),
        ("W4A0", ["A0 (there"]),
        ("W4A32", ["A32 (there"]),
        ("W4KV1", ["KV1 (there are 2, 3, 4, 5, 6, 7, 8; leave KV out for float)"]),
        ("W4KV16", ["KV16 (there"]),
        ("W1A2KV9", ["W1 (there", "A2 (there", "KV9 (there"]),
    ],
)
def test_bits_that_there_are_not_are_all_named_with_those_that_there_are(text: str, wrong: list[str]):
    with pytest.raises(ValueError, match=rf"'{text}' asks for") as caught:
        from_short(text)
    assert all(part in str(caught.value) for part in wrong)
    assert str(caught.value).count("(there are") == len(wrong)


@pytest.mark.parametrize(
    ("match", "named"),
    [
        ("down", {"mlp.down_proj"}),
        ("q", {"self_attn.q_proj"}),
        ("down_proj", {"mlp.down_proj"}),
        ("*mlp*", {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("*.[qk]_proj", {"self_attn.q_proj", "self_attn.k_proj"}),
    ],
)
def test_a_role_a_last_part_or_a_pattern_names_its_linears_in_every_layer(match: str, named: set[str]):
    assert named_by(match) == [name for name, _ in LINEARS if name.split(".", 3)[3] in named]


def test_a_pattern_is_of_the_whole_name():
    assert named_by("model.layers.1.*") == [name for name, _ in LINEARS if ".1." in name]
    assert named_by("model.layers.0.mlp.up_proj") == ["model.layers.0.mlp.up_proj"]
    assert named_by("mlp.up_proj") == named_by("layers") == named_by("DOWN") == named_by("Model.*") == []


def test_what_no_override_names_has_the_schemes_own():
    scheme = overridden(Override("down", Weights(8), Activations(16)))
    for name, role in LINEARS:
        own = (Weights(8), Activations(16)) if role == "down" else (BASE.weights, BASE.activations)
        assert scheme.of(name, role) == own


def test_of_several_overrides_the_last_one_counts_for_weights_and_activations_each():
    scheme = overridden(
        Override("down", Weights(2), Activations(16)),
        Override("model.layers.0.*", Weights(8)),
        Override("down_proj", activations=Activations(4)),
        Override("up", Weights(8)),
        Override("mlp*", Weights(2), Activations(16)),  # names nothing: a pattern is of the whole name
    )
    assert scheme.of("model.layers.0.mlp.down_proj", "down") == (Weights(8), Activations(4))
    assert scheme.of("model.layers.1.mlp.down_proj", "down") == (Weights(2), Activations(4))
    assert scheme.of("model.layers.0.mlp.up_proj", "up") == (Weights(8), BASE.activations)
    turned = overridden(*reversed(scheme.overrides))
    assert turned.of("model.layers.0.mlp.down_proj", "down") == (Weights(2), Activations(16))


def test_an_override_can_leave_a_linear_in_float():
    scheme = overridden(Override("down", Weights(0), Activations(0)))
    assert scheme.of("model.layers.0.mlp.down_proj", "down") == (Weights(0), Activations(0))


def test_overrides_that_name_nothing_are_told_in_order():
    scheme = overridden(*(Override(match, Weights(8)) for match in ("dwon", "down", "model.layers.2.*", "v")))
    assert scheme.unmatched(iter(LINEARS)) == ["dwon", "model.layers.2.*"]
    assert BASE.unmatched(LINEARS) == []


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (from_short("W4A16"), "INT4 per-channel weights, static INT16 activations"),
        (from_short("W4"), "INT4 per-channel weights, float activations"),
        (
            from_short("W3g64A8KV4"),
            "INT3 weights in groups of 64, dynamic INT8 activations, INT4 KV cache",
        ),
        (
            Scheme(Weights(4, False), Activations(8, False), KVCache(4, False, 32)),
            "asymmetric INT4 per-channel weights, asymmetric static INT8 activations, "
            "asymmetric INT4 KV cache in groups of 32",
        ),
        (
            Scheme(Weights(4), kv_cache=KVCache(2, False, 32, "channel", 64)),
            "INT4 per-channel weights, float activations, "
            "asymmetric INT2 KV cache in groups of 32, keys per channel in blocks of 64 tokens",
        ),
        (Scheme(Weights(0), Activations(16)), "static INT16 activations"),
        (
            replace(overridden(Override("down", Weights(8))), embedding=Weights(8), head=Weights(5, False, 32)),
            "INT4 per-channel weights, dynamic INT8 activations, INT8 embedding, asymmetric INT5 head in groups of 32, "
            "exceptions for down",
        ),
    ],
)
def test_a_scheme_in_words(scheme: Scheme, words: str):
    assert str(scheme) == words


@pytest.mark.parametrize("value", [BASE, BASE.weights, BASE.activations, BASE.kv_cache, Override("q", Weights(8))])
def test_a_scheme_does_not_change(value: object):
    with pytest.raises(AttributeError):
        value.bits = 2  # type: ignore[attr-defined]
    assert hash(value) == hash(value)
