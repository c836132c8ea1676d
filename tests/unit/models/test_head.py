"""Logits a few positions at a time, against those of one whole forward."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.knobs.scheme import Activations
from pipeline.models import head
from pipeline.quant.activations import Quantizer, quantize_inputs
from tests import tiny
from tests.families import FAMILIES, family
from tests.unit.models.test_plain_head import AFTER, made

STATES = {"MiniCPM": ("MiniCPM3Config", {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12, "dim_model_base": 8})}  # fmt: skip
BIAS = {"a bias": ("PhiConfig", {})}


def in_parts(model: Any, tokens: Tensor, rows: int) -> Tensor:
    run, states = head.of(model), head.reads(model, tokens)
    return torch.stack([torch.cat([run(part) for part in sequence.split(rows)]) for sequence in states])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_logits_come_out_of_its_head(name: str, tokens: Tensor):
    model = family(name)
    assert torch.allclose(in_parts(model, tokens, 7), model(input_ids=tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [*AFTER.values(), *STATES.values(), *BIAS.values()], ids=[*AFTER, *STATES, *BIAS])
def test_so_do_those_of_a_model_that_changes_what_its_head_reads_or_gives(
    kind: tuple[str, dict[str, Any]], tokens: Tensor
):
    config, options = kind
    model = made(config, 1.0, **options)
    logits = model(input_ids=tokens).logits
    assert torch.allclose(in_parts(model, tokens, 7), logits, atol=1e-5 * float(logits.abs().max()))


def test_a_head_reads_its_inputs_from_their_grid(tokens: Tensor):
    model = tiny.llama(tie=False)
    plain = in_parts(model, tokens, 7)
    quantize_inputs(model, {"lm_head": Quantizer(Activations(bits=4, dynamic=True))})
    logits = model(input_ids=tokens).logits
    assert torch.allclose(in_parts(model, tokens, 7), logits, atol=1e-5)
    assert not torch.allclose(plain, logits, atol=1e-2)


def test_a_plain_head_does_not_hold_the_decoder():
    import gc
    import weakref

    model = tiny.llama()
    layer, run = weakref.ref(model.model.layers[0]), head.of(model)
    del model
    gc.collect()
    assert layer() is None
    assert run(torch.zeros(3, 32)).shape == (3, 259)


def test_no_position_but_one_gets_logits_while_a_text_is_read(tokens: Tensor):
    model = tiny.llama()
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, logits: rows.append(logits.shape[:2].numel()))
    assert head.reads(model, tokens).shape == (6, 20, 32)
    assert rows == [6]
    assert torch.equal(model(input_ids=tokens).logits[:, :1], model(input_ids=tokens[:, :1]).logits)  # and it is whole
