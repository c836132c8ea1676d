"""What schemes of the KV cache cost: KL of the float model to itself with its keys and values quantized.

    python -m tests.bench.kv_schemes --teacher data/teacher --corpus data/corpus

Weights and inputs stay in float32, so all of the loss is the cache's. The text is held out, and the teacher's own.
"""

import argparse
import sys
from dataclasses import replace

from pipeline.knobs.scheme import KVCache
from pipeline.models import saved
from pipeline.quant.cache_memory import cache_bytes, shape
from pipeline.quant.kv_cache import quantize_cache
from tests.bench.held_out import HeldOut

WAYS = {
    "a token, symmetric": KVCache(8),
    "a token, asymmetric": KVCache(8, False),
    "groups of 64, asymmetric": KVCache(8, False, 64),
    "groups of 32, asymmetric": KVCache(8, False, 32),
    "keys a channel, values a token": KVCache(8, False, 0, "channel"),
    "keys a channel, values groups of 32": KVCache(8, False, 32, "channel"),
}
TOKENS = 8192  # at which bits a value are counted


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3, 2])
    args = parser.parse_args()
    model = saved.load_model(args.teacher)
    held_out, layers = HeldOut.of(model, args.corpus, args.sequences), shape(model.config)
    values = TOKENS * sum(layer.keys + layer.values for layer in layers)
    print("| scales | " + " | ".join(f"KV{bits} | bits a value" for bits in args.bits) + " |", flush=True)
    print("|---" * (1 + 2 * len(args.bits)) + "|", flush=True)
    for name, way in WAYS.items():
        cells = []
        for bits in args.bits:
            scheme = replace(way, bits=bits)
            undo = quantize_cache(model, scheme)
            scores = held_out.scores(model)
            undo()
            stored = 8 * cache_bytes(layers, scheme, TOKENS) / values
            cells.append(f"{scores['kl']:.4f} ± {scores['kl.stderr']:.4f} | {stored:.2f}")
            print(name, bits, cells[-1], file=sys.stderr, flush=True)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
