"""Of a multimodal model the text decoder is quantized and trained; what reads images stays as it is."""

import pytest
import torch
from torch import Tensor

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.distill.freeze import frozen_rows
from pipeline.distill.prepare import prepare
from pipeline.distill.student import Learns
from pipeline.knobs.scheme import from_short
from pipeline.models import layout
from pipeline.quant.model import stored_float
from tests import families


@pytest.mark.parametrize("vision_layers", [2, 3])
def test_only_what_a_text_reads_is_quantized_and_learns(vision_layers: int, tokens: Tensor, valid: Tensor):
    start = calibrate(
        families.multimodal(vision_layers), tokens, valid, from_short("W4A16"), Options("rtn", {}), None, lambda: None
    ).model
    model = families.multimodal(vision_layers)
    linears = layout.linears(model)
    assert start.codes.keys() == {linear.name for linear in linears}
    made = prepare(model, start, frozen_rows("ov", linears), Learns(), torch.float32)
    assert all(name.startswith("model.language_model.") for name in made.masters)
    assert "model.language_model.norm.weight" in made.masters
    made.model(input_ids=tokens, use_cache=False).logits.square().mean().backward()
    made.collect_gradients()
    assert all(bool(master.grad.abs().sum() > 0) for master in made.masters.values())
    finished = made.finished()
    vision = {name: p for name, p in families.multimodal(vision_layers).named_parameters() if "vision" in name}
    assert vision
    assert all(torch.equal(finished.floats[name], stored_float(values)) for name, values in vision.items())
