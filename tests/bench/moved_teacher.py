"""A teacher moved off the grid that it came from, by some steps of plain training on the corpus.

    python -m tests.bench.moved_teacher --out /tmp/moved
    dvc exp run -S teacher.source=path -S teacher.path=/tmp/moved -S scheme=W4g32E8g32 -S calibrate.rotation=none

The default teacher is dequantized from blocks of 32 with 16 values each, which may flatter a method that rounds in
blocks of 32. The moved one is a model in its own right, some nats from the first, and no better.
"""

import argparse
import itertools
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from transformers import PreTrainedModel

from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.evaluation.agreement import agreement
from pipeline.models import forward, layout, saved
from pipeline.models.float_type import computes_in


def off_grid(model: PreTrainedModel) -> float:
    """How far its linears are from the nearest Q4_1, gguf's 16 values of each block: a share of their own size."""
    error = size = 0.0
    for linear in layout.linears(model):
        weight = model.get_submodule(linear.name).weight.detach().float()
        near = dequantize(quantize(weight.numpy(), GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
        error += float((torch.from_numpy(near) - weight).square().sum())
        size += float(weight.square().sum())
    return (error / size) ** 0.5


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("data/teacher"))
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, corpus = saved.load_model(args.teacher), Corpus.load(args.corpus)
    print(f"off Q4_1's grid by {off_grid(model):.2%} of the weights' size", flush=True)
    tokens, lengths = corpus.train()
    labels = tokens.where(valid_mask(lengths, tokens.shape[1]), -100)
    rows = itertools.chain.from_iterable(torch.randperm(len(tokens)).split(args.batch) for _ in range(args.steps))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, args.steps)
    model.train().requires_grad_(True)
    for step, chosen in zip(range(args.steps), rows, strict=False):
        with forward.autocast(computes_in()):
            loss = model(input_ids=tokens[chosen], labels=labels[chosen], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: {float(loss.detach()):.3f} nats a token", flush=True)
    model.eval().requires_grad_(False)
    held_out, held_lengths = corpus.test()
    scores = agreement(
        model, saved.load_model(args.teacher), held_out, valid_mask(held_lengths, held_out.shape[1]), lambda: None
    )[0]
    print(f"off Q4_1's grid by {off_grid(model):.2%}; KL to the first {scores['kl']:.3f}, top-1 {scores['top1']:.1%}")
    model.half().save_pretrained(args.out)
    saved.load_tokenizer(args.teacher).save_pretrained(args.out)


if __name__ == "__main__":
    main()
