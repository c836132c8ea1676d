"""synthesize: let the teacher write the corpus that everything after learns from."""

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pipeline.artifacts import contract, progress
from pipeline.corpus import conversation, decoding, sampler
from pipeline.corpus.artifact import Corpus
from pipeline.knobs import params
from pipeline.models import float_type, saved, vocabulary
from stages import run


def work() -> None:
    args = run.begin("synthesize", "teacher", "out")
    loaded = params.load()
    knobs, seed = float_type.settled(loaded.synthesize), loaded.seed
    contract.reading(args.teacher, contract.TEACHER)
    model = saved.load_model(args.teacher, knobs.dtype)
    tokenizer = saved.load_tokenizer(args.teacher)
    starts = sampler.allowed_starts(vocabulary.vocabulary(tokenizer)[-1] + 1, vocabulary.no_text(tokenizer))
    eos = vocabulary.end_tokens(model)
    opening = conversation.opening(tokenizer, eos) if knobs.chat else None
    if knobs.chat and opening is None:
        print("synthesize: the teacher has no chat template; all its text begins with a random token", flush=True)

    inputs = {
        "teacher": contract.fingerprint(args.teacher),
        "seed": seed,
        "knobs": dataclasses.asdict(knobs),
    }
    scratch = progress.scratch("synthesize", inputs)
    batches = [
        range(first, min(first + knobs.batch, knobs.sequences)) for first in range(0, knobs.sequences, knobs.batch)
    ]
    files = [scratch / f"{batch.start}.safetensors" for batch in batches]
    kept = [_kept(file) for file in files]
    done = [part.numel() for part in kept if part is not None]
    if done:
        print(f"synthesize: going on after {len(done)} of {len(batches)} batches", flush=True)
    way = _way(model, knobs.length)
    parts, prefixes, opened, sampled_from = [], [], [], []
    with progress.bar("synthesize", knobs.sequences * knobs.length, " tok", initial=sum(done)) as bar:
        for batch, file, part in zip(batches, files, kept, strict=True):
            prefix = (knobs.greedy_prefix[0], knobs.greedy_prefix[1])
            said = opening.tokens if opening else []
            streams = sampler.draw_streams(seed, batch, knobs.length, starts, prefix, said, knobs.chat)
            tokens = part
            if tokens is None:
                tokens = sampler.generate(model, streams, knobs.strategy, knobs.temperature, bar.update, way)
                save_file({"tokens": tokens}, file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)
            parts.append(tokens)
            prefixes.append(streams.prefix)
            opened.append(streams.opened)
            sampled_from.append(sampler.sampled_from(streams, knobs.strategy, knobs.temperature))

    tokens, chats = torch.cat(parts), torch.cat(opened)
    lengths = sampler.valid_lengths(tokens, eos if knobs.stop_at_eos else [], chats * (opening.ends if opening else 0))
    corpus = Corpus(tokens, lengths, torch.cat(prefixes), torch.cat(sampled_from), knobs.held_out)
    facts = {"strategy": knobs.strategy, "chats": int(chats.sum()), "seed": seed, "valid_tokens": int(lengths.sum())}
    corpus.save(args.out, facts)


def _way(model: PreTrainedModel, length: int) -> str:
    """In which of decoding.WAYS the model writes; says why, where it is not the fastest."""
    way = decoding.choose(model, length)
    for name, reason in way.passed_over.items():
        print(f"synthesize: {type(model).__name__} does not write with {name}: {reason}", flush=True)
    if way.passed_over:
        print(f"synthesize: it writes with {way.name}, which is slower", flush=True)
    return way.name


def _kept(file: Path) -> torch.Tensor | None:
    """A batch that an earlier run wrote; None where nothing whole is."""
    try:
        return load_file(file)["tokens"]
    except (FileNotFoundError, SafetensorError):
        return None


if __name__ == "__main__":
    run.main("synthesize", work)
