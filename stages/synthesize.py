"""synthesize: let the teacher write the corpus that everything after learns from."""

import dataclasses

import torch
from safetensors.torch import load_file, save_file

from pipeline import artifacts, models, params, progress, synth
from pipeline.corpus import Corpus
from stages import run


def work() -> None:
    args = run.paths("synthesize", "teacher", "out")
    loaded = params.load()
    knobs, seed = loaded.synthesize, loaded.seed
    artifacts.reading(args.teacher, artifacts.TEACHER)
    model = models.load_model(args.teacher, knobs.dtype)
    tokenizer = models.load_tokenizer(args.teacher)
    starts = synth.allowed_starts(len(tokenizer), models.special_tokens(tokenizer))

    inputs = {
        "teacher": artifacts.fingerprint(args.teacher),
        "seed": seed,
        "knobs": dataclasses.asdict(knobs),
    }
    scratch = progress.scratch("synthesize", inputs)
    batches = [
        range(first, min(first + knobs.batch, knobs.sequences)) for first in range(0, knobs.sequences, knobs.batch)
    ]
    finished = sum((scratch / f"{batch.start}.safetensors").exists() for batch in batches)
    done = sum(len(b) for b in batches if (scratch / f"{b.start}.safetensors").exists()) * knobs.length
    if finished:
        print(f"synthesize: going on after {finished} of {len(batches)} batches")
    parts, prefixes = [], []
    with progress.bar("synthesize", knobs.sequences * knobs.length, " tok", initial=done) as bar:
        for batch in batches:
            prefix = (knobs.greedy_prefix[0], knobs.greedy_prefix[1])
            streams = synth.draw_streams(seed, batch, knobs.length, starts, prefix)
            file = scratch / f"{batch.start}.safetensors"
            if not file.exists():
                tokens = synth.generate(model, streams, knobs.strategy, knobs.temperature, bar.update)
                save_file({"tokens": tokens}, file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)
            parts.append(load_file(file)["tokens"])
            prefixes.append(streams.prefix)

    tokens = torch.cat(parts)
    lengths = synth.valid_lengths(tokens, models.end_tokens(model) if knobs.stop_at_eos else [])
    corpus = Corpus(tokens, lengths, torch.cat(prefixes), knobs.held_out)
    corpus.save(args.out, {"strategy": knobs.strategy, "seed": seed, "valid_tokens": int(lengths.sum())})
    progress.clear("synthesize")


if __name__ == "__main__":
    run.main("synthesize", work)
