"""What quantizing embedding and head costs: the KL to the teacher that each grid adds to a quantized model's.

    python -m tests.bench.embedding_head
    python -m tests.bench.embedding_head --quantized data/calibration --grids E8 H6 E8H6

It takes a quantized model, the student where no other is given, puts its embedding and its head on each grid, by round
to nearest and as calibrate would, and prints a table. `scheme` must leave both in float, since the codes of a model
that has them are not undone. Megabytes are those of weights in compressed-tensors, whose embedding has a byte a code.
It needs data/teacher, data/corpus and the quantized model (`dvc repro distill`).
"""

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.embedding_head import ROWS
from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.knobs import params
from pipeline.knobs.scheme import Scheme, Weights, from_short
from pipeline.models import forward, layout, saved
from pipeline.quant.model import QuantizedModel
from pipeline.rounding.methods import gptq, mse, rtn
from tests.bench.held_out import HeldOut

GRIDS = (
    *("E8", "E6", "E5", "E4g32"),
    *("H8", "H6", "H6g64", "H6g32", "H5", "H5g64", "H5g32", "H4g32"),
    *("E8H8", "E8H6", "E6H8", "E8H6g64", "E8H5g64", "E8H5g32"),
)
BATCH = 8


def head_hessian(model: PreTrainedModel, tokens: Tensor, valid: Tensor) -> Tensor:
    """X^T X of what the head reads: float32 [hidden, hidden]."""
    total = torch.zeros(())
    for part, mask in zip(tokens.split(BATCH), valid.split(BATCH), strict=True):
        rows = forward.hidden_states(model, part)[mask]
        total = total + rows.T @ rows
    return total


def rounded(weight: Tensor, grid: Weights, how: Callable[..., object]) -> Tensor:
    """The weight on its grid, some rows at a time."""
    return torch.cat([how(rows.clone(), grid).weight for rows in weight.split(ROWS)])  # type: ignore[attr-defined]


def megabytes(scheme: Scheme, shape: torch.Size, other_bytes: int) -> float:
    """Of all weights in compressed-tensors."""
    total = float(other_bytes)
    for grid, bits in ((scheme.embedding, 8), (scheme.head, scheme.head.bits)):
        scales = shape[0] * (shape[1] // (grid.group or shape[1]))
        total += (bits * shape.numel() / 8 + 2 * scales) if grid.bits else 2 * shape.numel()
    return total / 1e6


@torch.no_grad()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--quantized", default="data/student")
    parser.add_argument("--grids", nargs="+", default=GRIDS, metavar="GRID")
    args = parser.parse_args()
    knobs, model = params.load().calibrate, saved.load_model(args.teacher)
    tokens, lengths = Corpus.load(args.corpus).train(knobs.sequences)
    quantized, _ = QuantizedModel.load(args.quantized)
    quantized.put_into(model)
    embedding, head = model.get_input_embeddings().weight, forward.head_module(model).weight
    if embedding is head:
        raise SystemExit("embedding and head are one weight, whose cost this does not tell apart; rotate the model")
    if len(quantized.codes) > len(layout.linears(model)):
        raise SystemExit(f"{args.quantized} has codes of embedding or head; make it with `-S scheme=W4A16`")
    held_out = HeldOut.of(saved.load_model(args.teacher), args.corpus)
    hessian = head_hessian(model, tokens, valid_mask(lengths, tokens.shape[1]))
    floats = embedding.clone(), head.clone()
    other_bytes = sum(
        codes.numel() * quantized.schemes[name].bits // 8 + 2 * quantized.steps[name].scale.numel()
        for name, codes in quantized.codes.items()
    )
    options = {key: getattr(knobs, key) for key in ("damping", "block", "act_order", "scales", "descent")}
    methods = {
        "rtn": (lambda rows, grid: rtn(rows, None, grid), lambda rows, grid: rtn(rows, None, grid)),
        "calibrate": (
            lambda rows, grid: mse(rows, None, grid),
            lambda rows, grid: gptq(rows, hessian, grid, **options),
        ),
    }

    def measure() -> float:
        return held_out.scores(model)["kl"]

    base = measure()
    print(f"both in float16: KL {base:.4f}\n\n| | MB | round to nearest | calibrate |\n|---|---|---|---|")
    for text in args.grids:
        scheme = from_short(f"W4{text}")
        costs = []
        for of_embedding, of_head in methods.values():
            for weight, exact, grid, how in (
                (embedding, floats[0], scheme.embedding, of_embedding),
                (head, floats[1], scheme.head, of_head),
            ):
                weight.copy_(rounded(exact, grid, how) if grid.bits else exact)
            costs.append(measure() - base)
        size = megabytes(scheme, embedding.shape, other_bytes)
        print(f"| {text} | {size:.1f} | " + " | ".join(f"{cost:+.4f}" for cost in costs) + " |", flush=True)


if __name__ == "__main__":
    main()
