"""A teacher moved off the grid that it came from, the same function or, after some steps of plain training, another.

    python -m tests.bench.moved_teacher --out /tmp/moved
    dvc exp run -S teacher.source=path -S teacher.path=/tmp/moved -S scheme=W4g32E8g32 -S calibrate.rotation=none

The default teacher is dequantized from blocks of 32 with 16 values each, which may flatter what rounds in blocks of 32.
Here each channel between a norm and the linears that read it, between values and o_proj, and between up_proj and
down_proj is multiplied by a random factor on one side and divided by it on the other: the logits stay, and no block
of a linear's inputs lies on its old grid. `--steps` trains the model on the corpus first, which alone hardly moves it.
For models built as Llama is.
"""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from transformers import PreTrainedModel

from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.models import forward, layout, saved
from pipeline.models.float_type import computes_in
from tests.bench.held_out import HeldOut


def off_grid(model: PreTrainedModel) -> float:
    """How far its linears are from the nearest Q4_1, gguf's 16 values of each block: a share of their own size."""
    error = size = 0.0
    for linear in layout.linears(model):
        weight = model.get_submodule(linear.name).weight.detach().float()
        near = dequantize(quantize(weight.numpy(), GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
        error += float((torch.from_numpy(near) - weight).square().sum())
        size += float(weight.square().sum())
    return (error / size) ** 0.5


@torch.no_grad()
def rescale(model: PreTrainedModel, spread: float) -> None:
    """Multiply channels by exp(spread * normal) where they are written, and divide them where they are read."""
    layers: Iterable[Any] = layout.decoder_layers(model)[1]
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        turns = attention.o_proj.in_features // attention.v_proj.out_features  # query heads that share a head's values
        sized = (attention.v_proj.out_features // attention.head_dim, 1, attention.head_dim)
        for written, readers in (
            (layer.input_layernorm.weight, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm.weight, (mlp.gate_proj, mlp.up_proj)),
            (attention.v_proj.weight, (attention.o_proj,)),
            (mlp.up_proj.weight, (mlp.down_proj,)),
        ):
            factors = torch.exp(spread * torch.randn(len(written)))
            written.mul_(factors if written.ndim == 1 else factors[:, None])
            if written is attention.v_proj.weight:
                factors = factors.view(sized).expand(-1, turns, -1).flatten()
            for reader in readers:
                reader.weight.div_(factors)


def train(model: PreTrainedModel, corpus: Corpus, steps: int, batch: int, lr: float) -> None:
    """Plain training on the corpus's training split."""
    tokens, lengths = corpus.train()
    labels = tokens.where(valid_mask(lengths, tokens.shape[1]), -100)
    rows = itertools.chain.from_iterable(torch.randperm(len(tokens)).split(batch) for _ in range(steps))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train().requires_grad_(True)
    for step, chosen in zip(range(steps), rows, strict=False):
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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("data/teacher"))
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spread", type=float, default=0.25, help="of the factors' logarithms; 0: none")
    parser.add_argument("--steps", type=int, default=0, help="of plain training before")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, corpus = saved.load_model(args.teacher), Corpus.load(args.corpus)
    print(f"off Q4_1's grid by {off_grid(model):.2%} of the weights' size", flush=True)
    train(model, corpus, args.steps, args.batch, args.lr)
    rescale(model, args.spread)
    scores = HeldOut.of(saved.load_model(args.teacher), args.corpus).scores(model)
    print(f"off Q4_1's grid by {off_grid(model):.2%}; KL to the first {scores['kl']:.2g}, top-1 {scores['top1']:.1%}")
    model.save_pretrained(args.out)
    saved.load_tokenizer(args.teacher).save_pretrained(args.out)


if __name__ == "__main__":
    main()
