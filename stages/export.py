"""export: write a quantized model in a format that others load, and check that it holds the same numbers."""

from pathlib import Path

from pipeline import artifacts, params
from pipeline.export.formats import export
from pipeline.quant.model import QuantizedModel
from stages import run


def work() -> str:
    args = run.begin("export", "teacher", "quantized", "out")
    format_name = params.load().export.format
    artifacts.reading(args.teacher, artifacts.TEACHER)
    quantized, made = QuantizedModel.load(args.quantized)
    with artifacts.writing(Path(args.out), artifacts.INT4) as draft:
        draft.facts = export(quantized, args.teacher, format_name, draft.path)
        draft.facts |= {fact: made[fact] for fact in ("coverage", "in_float") if fact in made}
    return Path(args.out).name


if __name__ == "__main__":
    run.main("export", work)
