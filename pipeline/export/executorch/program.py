"""A decoder lowered to a program of ExecuTorch's: what XNNPACK has a kernel for is its own, the rest are operators."""

from typing import Any

import torch

from pipeline.export.executorch import package
from pipeline.export.executorch.decoder import Decoder

EXAMPLE = 8  # tokens with which the decoder is traced; a program takes any number of them up to a chunk
AS_IT_IS = "dqlinear_partitioner"  # XNNPACK leaves out passes that find nothing here, and take as long as all else


def lowered(decoder: Decoder, chunk: int, methods: dict[str, Any]) -> bytes:
    """A program whose method `forward` is the decoder.

    Args:
        chunk: the most tokens that it reads at once. methods: what other methods return, by name.
    """
    package.register()
    with package.quietly(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
        from executorch.exir.backend.compile_spec_schema import CompileSpec

        tokens, position = torch.zeros(1, min(EXAMPLE, chunk), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        xnnpack = XnnpackPartitioner()
        xnnpack.delegation_spec.compile_specs.append(CompileSpec(AS_IT_IS, b""))
        length = torch.export.Dim("length", min=1, max=chunk)
        exported = torch.export.export(decoder.eval(), (tokens, position), dynamic_shapes=({1: length}, None))
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[xnnpack],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),  # which does not know operators for LLMs
            constant_methods=methods,
        )
        return bytes(edge.to_executorch().buffer)
