"""What a cache of codes takes: memory of the process, and seconds a token, beside a cache in float.

    python -m tests.bench.kv_cache --teacher data/teacher --tokens 512 2048 8192

Each line is of a process of its own. The cache is filled with random keys and values, chunk by chunk, as long prompts
fill it; then tokens are written, which reads all of it in each layer. `counted` is what cache_memory.py says.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from pipeline.knobs.scheme import KVCache
from pipeline.models import memory, saved
from pipeline.quant.cache_memory import cache_bytes, shape
from pipeline.quant.kv_cache import quantize_cache
from pipeline.quant.packed_cache import PackedCache

SCHEMES = {
    "float": KVCache(0),
    "KV8": KVCache(8),
    "KV4": KVCache(4),
    "KV4, groups of 32, asymmetric": KVCache(4, False, 32),
    "KV2, keys a channel, values groups of 32": KVCache(2, False, 32, "channel"),
}
CHUNK = 512  # tokens that the cache is filled with at once


def resident() -> int:
    """Bytes of the process that are in memory, once what is free was given back."""
    memory.give_back()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def fill(cache: Cache, model: PreTrainedModel, tokens: int) -> None:
    """Random keys and values of so many tokens, in every layer."""
    generator, config = torch.Generator().manual_seed(0), model.config
    size = (1, config.num_key_value_heads, tokens, config.head_dim)
    for layer in range(config.num_hidden_layers):
        for part in torch.randn(2, *size, generator=generator).to(model.dtype).split(CHUNK, dim=3):
            cache.update(part[0], part[1], layer)


@torch.inference_mode()
def measure(folder: str, scheme: KVCache, dtype: str, tokens: int, written: int) -> dict[str, float]:
    """Of one cache in this process: MB of the process, MB counted, seconds a token (the median)."""
    model = saved.load_model(folder, dtype)
    if scheme.bits:
        quantize_cache(model, scheme, packed=True)
    one = torch.ones(1, 1, dtype=torch.int64)
    model(input_ids=one, use_cache=False)  # what the first forward allocates is not the cache's
    before = resident()
    cache = PackedCache(model.config, scheme) if scheme.bits else DynamicCache(config=model.config)
    fill(cache, model, tokens)
    taken, seconds = resident() - before, []
    for _ in range(written):
        begun = time.monotonic()
        model(input_ids=one, past_key_values=cache, use_cache=True)
        seconds.append(time.monotonic() - begun)
    counted = cache_bytes(shape(model.config), scheme, tokens, float_dtype=model.dtype)
    return {"process": taken / 1e6, "counted": counted / 1e6, "seconds": sorted(seconds)[len(seconds) // 2]}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--written", type=int, default=8, help="tokens that are written and timed")
    parser.add_argument("--dtype", default="bfloat16", help="of the model, and so of the float cache")
    parser.add_argument("--one", choices=SCHEMES, help="measure it in this process, and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.teacher, SCHEMES[args.one], args.dtype, args.tokens[0], args.written)))
        return
    print("| cache | tokens | MB of the process | MB counted | ms a token |\n|---|---|---|---|---|", flush=True)
    for tokens in args.tokens:
        for name in SCHEMES:
            command = [sys.executable, "-m", "tests.bench.kv_cache", "--teacher", args.teacher, "--one", name]
            command += ["--tokens", str(tokens), "--written", str(args.written), "--dtype", args.dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            m = json.loads(done.stdout.splitlines()[-1])
            label = args.dtype if name == "float" else name
            cells = f"{m['process']:.1f} | {m['counted']:.1f} | {1000 * m['seconds']:.0f}"
            print(f"| {label} | {tokens:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
