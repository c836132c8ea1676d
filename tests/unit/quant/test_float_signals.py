"""The switch that leaves signals as they are, against the model that nothing was done to."""

import pytest
import torch
from torch import Tensor

from pipeline.knobs.scheme import Activations, KVCache
from pipeline.quant.activations import Quantizer
from pipeline.quant.float_signals import are_float, float_signals
from pipeline.quant.model import quantize_signals
from tests.families import family


@pytest.mark.parametrize(
    "cache", [KVCache(2), KVCache(2, keys="channel"), KVCache(4, group=8, symmetric=False)], ids=str
)
def test_inputs_keys_and_values_are_those_of_the_plain_model(cache: KVCache, tokens: Tensor):
    model = family("llama")
    inputs = {name: Quantizer(Activations(4, dynamic=True)) for name in ("model.layers.0.mlp.up_proj", "lm_head")}
    with torch.no_grad():
        plain = model(input_ids=tokens).logits
        undo = quantize_signals(model, inputs, cache)
        quantized = model(input_ids=tokens).logits
        with float_signals(), float_signals():
            assert are_float()
            inside = model(input_ids=tokens).logits
        after = model(input_ids=tokens).logits
        undo()
    assert torch.equal(inside, plain)
    assert not torch.allclose(quantized, plain, atol=1e-2)
    assert torch.equal(after, quantized)


def test_what_fails_inside_leaves_signals_quantized():
    with pytest.raises(RuntimeError), float_signals():
        raise RuntimeError
    assert not are_float()
