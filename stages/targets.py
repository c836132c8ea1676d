"""targets: what distillation learns from: the training text, and what the teacher makes of it, recorded once."""

from pathlib import Path

from pipeline import artifacts, float_type, models, params, progress, texts
from pipeline.corpus import Corpus
from pipeline.distill import targets
from stages import run


def work() -> None:
    args = run.begin("targets", "teacher", "corpus", "text", "out", accelerated=True)
    loaded = params.load()
    knobs = float_type.settled(loaded.targets, models.device().type)
    artifacts.reading(args.teacher, artifacts.TEACHER)
    tokens, lengths = own = Corpus.load(args.corpus).train()
    if knobs.share:
        tokenizer = models.load_tokenizer(args.teacher)
        outside = texts.pack(texts.documents(Path(args.text)), tokenizer, tokens.shape[1])
        tokens, lengths = targets.mix(own, outside, knobs.share, loaded.seed)
    teacher = models.load_model(args.teacher)
    models.head_weight(teacher)  # refuses a model whose logits are more than its head times these states
    models.cast_linears(teacher, knobs.dtype)
    with progress.bar("targets", tokens.numel(), " tok") as bar:
        found = targets.record(teacher.to(models.device()), tokens, lengths, knobs.batch, knobs.dtype, bar.update)
    found.save(args.out, {"dtype": knobs.dtype, "share": knobs.share})


if __name__ == "__main__":
    run.main("targets", work)
