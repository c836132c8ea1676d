"""references: what the teacher makes of the texts that every variant is compared on, computed once."""

from torch import Tensor

from pipeline.artifacts import contract, progress
from pipeline.corpus import decoding
from pipeline.corpus.artifact import Corpus
from pipeline.evaluation import dialogues, prompts, provenance, references, text
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
    talk = prompts.dialogues(loaded.seed, knobs.dialogues, tokenizer)
    longest = talk.longest(knobs.tokens)
    asked = {"references.long": knobs.long, "references.tokens, with what is said before the answers": longest}
    if problems := prompts.too_long(context.context_length(teacher), asked):
        raise ValueError("\n  ".join(problems))

    way, ends = decoding.choose(teacher, max(longest, decoding.COMPARED)).name, vocabulary.end_tokens(teacher)
    talks = list[tuple[Tensor, Tensor]]()
    if talk.said:
        with progress.bar("references: dialogues", talk.steps(knobs.tokens), " tok") as bar:
            talks = dialogues.answered(teacher, way, talk.said, knobs.tokens, ends, bar.update)
    texts = references.documents(
        [
            *((references.HELD_OUT, row[:length], None) for row, length in zip(tokens, lengths.tolist(), strict=True)),
            *((references.LONG, ids, None) for ids in long),
            *((references.DIALOGUE, ids, turn) for ids, turn in talks),
        ]
    )
    held_out = provenance.of_tokens(tokens.numpy(), lengths.numpy())
    facts = {"held_out": held_out, "dtype": scoring.dtype, "way": way, "ends": ends}
    with progress.bar("references", sum(len(document.tokens) for document in texts), " tok") as bar:
        references.record(teacher, texts, facts, bar.update).save(args.out)
    template = "in its chat template" if talk.template else "in plain words, as it has no chat template"
    told = f"references: {len(tokens)} held-out sequences, {knobs.long} tokens of long text, {len(talks)} conversations"
    print(f"{told} {template}" if talks else told, flush=True)


if __name__ == "__main__":
    run.main("references", work)
