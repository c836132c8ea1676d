"""evaluate: score the teacher or an exported folder, reloaded as anyone would load it."""

from contextlib import ExitStack
from pathlib import Path

from pipeline.artifacts import contract, progress
from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.evaluation import agreement, harness, items, provenance, selection, text
from pipeline.export.formats import load_exported
from pipeline.export.sizes import stored_bytes, stored_weights
from pipeline.knobs import params
from pipeline.models import float_type, saved
from stages import run


def work() -> str:
    args = run.begin("evaluate", "teacher", "corpus", "model", "out", "items")
    knobs = float_type.settled(params.load().evaluate)
    variant = Path(args.out).stem
    folder = knobs.benchmarks if knobs.source == "folder" else None
    tasks = selection.selected(knobs.groups, knobs.tasks, folder, knobs.limit, knobs.items)
    prose = text.read_text(knobs.text, knobs.benchmarks)
    teacher_facts = contract.reading(args.teacher, contract.TEACHER)
    is_teacher = args.model == args.teacher
    facts = teacher_facts if is_teacher else contract.reading(args.model, contract.INT4)

    tokenizer = saved.load_tokenizer(args.teacher)
    tokens, lengths = Corpus.load(args.corpus).test()
    teacher = saved.load_model(args.teacher, knobs.dtype)
    model = teacher if is_teacher else load_exported(args.model, knobs.dtype)
    batches = -(-len(tokens) // agreement.BATCH)
    with progress.bar(f"evaluate {variant}: text", knobs.windows + batches, " batch") as bar:
        windows = text.windows(prose, tokenizer, knobs.windows, knobs.window)
        scores, measured = text.perplexity(model, windows, bar.update)
        valid = valid_mask(lengths, tokens.shape[1])
        agreed, by_sequence = agreement.agreement(model, teacher, tokens, valid, bar.update)
    with ExitStack() as shown:
        accuracy, answered, asked = harness.accuracy(
            model,
            tokenizer,
            tasks,
            folder,
            knobs.limit,
            knobs.batch,
            Path("runs/datasets") / variant,
            lambda count: shown.enter_context(progress.bar(f"evaluate {variant}: items", count, " answer")).update,
            knobs.items,
        )
    scores |= agreed | accuracy | sizes(args.model, facts)
    made = items.Items(items.answers(answered), items.documents(measured + by_sequence))
    made.save(args.items, {"dtype": knobs.dtype})
    read = {
        "teacher": contract.fingerprint(args.teacher),
        "text": text.text_sha256(prose),
        "windows": provenance.of_tokens(windows.numpy()),
        "held_out": provenance.of_tokens(tokens.numpy(), lengths.numpy()),
        **asked,
    }
    contract.write_scores(Path(args.out), {name: float(value) for name, value in scores.items()}, read)
    return variant


def sizes(folder: str | Path, facts: dict) -> dict[str, float]:
    """Bytes of the weights on disk, and bits: of the file by a weight of the teacher, and of the quantized linears."""
    stored = stored_bytes(folder)
    return {
        "weight_bytes": stored,
        "bits_per_weight": 8 * stored / (facts.get("teacher_weights") or stored_weights(folder)),
        "bits_per_quantized_weight": facts.get("bits_per_quantized_weight", 32.0),
    }


if __name__ == "__main__":
    run.main("evaluate", work)
