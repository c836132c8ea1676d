"""What Qualcomm's simulator makes of a product, of which the graphs assume something; without it nothing is run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from pipeline.export.onnx.graph import Graph, value
from pipeline.export.qnn import ranges as qnn_ranges
from pipeline.export.qnn.tensors import OPSET, QnnTensors
from pipeline.knobs.scheme import from_short
from pipeline.quant.grid import Grid
from tests.families import family
from tests.unit.export.qnn.folders import rounded

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
DOWN, ROWS = "model.layers.0.mlp.down_proj", 64


def test_a_product_has_back_what_the_npu_cuts_off_of_its_sum(tokens: Tensor, valid: Tensor, tmp_path: Path):
    from pipeline.export.qnn import session as qnn_session

    quantized, model = rounded(family("llama"), from_short("W4A16"), tokens, valid), family("llama")
    ranges = qnn_ranges.observe(family("llama"), quantized, tokens)
    with Graph(tmp_path / "product.onnx", OPSET) as graph:
        graph.inputs.append(value("x", onnx.TensorProto.FLOAT, [1, ROWS, 64]))
        graph.outputs.append(value("y", onnx.TensorProto.FLOAT, [1, ROWS, 32]))
        product = QnnTensors(graph, model, quantized, ranges).linear("x", DOWN)
        graph.add("Identity", product, outputs=["y"])
    step, scale = quantized.inputs[DOWN].step, quantized.steps[DOWN].scale.reshape(-1)
    assert step is not None
    x = 2000 * step.scale * torch.randn(1, ROWS, 64, generator=torch.Generator().manual_seed(0))
    session = qnn_session.open_session(tmp_path / "product.onnx", "v75", {})
    (y,) = session.run(None, {"x": x.numpy()})
    sums = Grid(16, True).quantize(x.half().float(), step) @ quantized.codes[DOWN].float().T
    off = (torch.from_numpy(y) / (step.scale * scale) - sums).numpy()
    assert abs(float(off.mean())) < 16  # of the 127.5 that it lacks on average
    assert float(np.abs(off).mean()) < 128
