"""Tokens a second of our decoding against transformers.generate, side by side: same model, batch, length and dtype.

    python -m tests.bench.synthesize [--teacher data/teacher] [--batch 64] [--length 256] [--rounds 2]

Both sample from the full distribution at temperature 1 (top_k=0, top_p=1) from the same start tokens. They take turns,
and the ratio of each round is printed, so that a machine whose speed drifts does not decide.
"""

import argparse
import statistics
import time

import torch

from pipeline.corpus import sampler
from pipeline.models import saved, vocabulary


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    tokenizer = saved.load_tokenizer(args.teacher)
    ours, theirs = (saved.load_model(args.teacher, "bfloat16") for _ in range(2))
    starts = sampler.allowed_starts(len(tokenizer), vocabulary.special_tokens(tokenizer))
    streams = sampler.draw_streams(0, range(args.batch), args.length, starts, (3, 5))
    total = args.batch * args.length

    def run_ours() -> float:
        begun = time.perf_counter()
        sampler.generate(ours, streams, "sampled", 1.0, lambda _: None)
        return total / (time.perf_counter() - begun)

    def run_theirs() -> float:
        begun = time.perf_counter()
        new = args.length - 1
        with torch.inference_mode():
            out = theirs.generate(
                streams.prompt[:, :1],
                attention_mask=torch.ones(args.batch, 1, dtype=torch.int64),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                min_new_tokens=new,
                max_new_tokens=new,
            )
        assert out.shape == (args.batch, args.length)
        return total / (time.perf_counter() - begun)

    ratios = []
    for number in range(args.rounds):
        mine, other = run_ours(), run_theirs()
        ratios.append(mine / other)
        print(
            f"round {number + 1}: ours {mine:,.0f} tok/s, generate {other:,.0f} tok/s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"batch {args.batch}, length {args.length}: median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
