"""targets: what distillation learns from: the training text, and what the teacher makes of it, recorded once."""

from pathlib import Path

from pipeline.artifacts import contract, progress
from pipeline.corpus import texts
from pipeline.corpus.artifact import Corpus
from pipeline.distill import targets
from pipeline.knobs import params
from pipeline.models import float_type, forward, saved
from stages import run


def work() -> None:
    args = run.begin("targets", "teacher", "corpus", "text", "out", accelerated=True)
    loaded = params.load()
    knobs = float_type.settled(loaded.targets, forward.device().type)
    contract.reading(args.teacher, contract.TEACHER)
    tokens, lengths = own = Corpus.load(args.corpus).train()
    if knobs.share:
        tokenizer = saved.load_tokenizer(args.teacher)
        outside = texts.pack(texts.documents(Path(args.text)), tokenizer, tokens.shape[1])
        tokens, lengths = targets.mix(own, outside, knobs.share, loaded.seed)
    teacher = saved.load_model(args.teacher)
    forward.head_weight(teacher)  # refuses a model whose logits are more than its head times these states
    forward.cast_linears(teacher, knobs.dtype)
    with progress.bar("targets", tokens.numel(), " tok") as bar:
        recorded = targets.record(teacher.to(forward.device()), tokens, lengths, knobs.batch, knobs.dtype, bar.update)
    recorded.save(args.out, {"dtype": knobs.dtype, "share": knobs.share})


if __name__ == "__main__":
    run.main("targets", work)
