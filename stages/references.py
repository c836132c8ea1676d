"""references: what the teacher makes of the texts that every variant is compared on, computed once."""

from transformers import PreTrainedModel

from pipeline.artifacts import contract, progress
from pipeline.corpus import decoding
from pipeline.corpus.artifact import Corpus
from pipeline.evaluation import dialogues, provenance, references, text, turns, writing
from pipeline.evaluation.made.dialogue import make_dialogues
from pipeline.knobs import params
from pipeline.models import context, float_type, saved, vocabulary
from stages import run


def work() -> None:
    args = run.begin("references", "teacher", "corpus", "out")
    loaded = params.load()
    knobs, scoring = loaded.references, float_type.settled(loaded.evaluate)
    contract.reading(args.teacher, contract.TEACHER)
    tokens, lengths = Corpus.load(args.corpus).test()
    tokenizer, teacher = saved.load_tokenizer(args.teacher), saved.load_model(args.teacher, scoring.dtype)
    prose = text.read_text(scoring.text, scoring.benchmarks) if knobs.long else ""
    long = [text.beginning(prose, tokenizer, knobs.long, "references.long")] if knobs.long else []
    frame = turns.of(tokenizer) if knobs.dialogues else None
    said = dialogues.scripts(make_dialogues(loaded.seed, knobs.dialogues), tokenizer, frame) if frame else []
    longest = writing.longest(said, knobs.tokens)
    _check_lengths(teacher, knobs.long, longest)

    way, ends = decoding.choose(teacher, max(longest, decoding.COMPARED)).name, vocabulary.end_tokens(teacher)
    with progress.bar("references: dialogues", longest, " tok") as bar:
        talks = dialogues.answered(teacher, way, said, knobs.tokens, ends, bar.update) if said else []
    texts = references.documents(
        [
            *((references.HELD_OUT, row[:length], None) for row, length in zip(tokens, lengths.tolist(), strict=True)),
            *((references.LONG, ids, None) for ids in long),
            *((references.DIALOGUE, ids, turn) for ids, turn in talks),
        ]
    )
    facts = {
        "held_out": provenance.of_tokens(tokens.numpy(), lengths.numpy()),
        "dtype": scoring.dtype,
        "way": way,
        "ends": ends,
    }
    with progress.bar("references", sum(len(document.tokens) for document in texts), " tok") as bar:
        recorded = references.record(teacher, texts, facts, bar.update)
    recorded.save(args.out)
    template = "in its chat template" if frame and frame.template else "in plain words, as it has no chat template"
    print(
        f"references: {len(tokens)} held-out sequences, {knobs.long} tokens of long text, {len(talks)} conversations"
        + (f" {template}" if talks else ""),
        flush=True,
    )


def _check_lengths(teacher: PreTrainedModel, long: int, dialogue: int) -> None:
    """Raises ValueError if a text is longer than what the model reads: all that are."""
    most = context.context_length(teacher)
    asked = {"references.long": long, "references.tokens (with what is said before the answers)": dialogue}
    problems = [
        f"{knob}: {count} tokens are more than the {most} of the model's context; lower it"
        for knob, count in asked.items()
        if most is not None and count > most
    ]
    if problems:
        raise ValueError("\n  ".join(problems))


if __name__ == "__main__":
    run.main("references", work)
