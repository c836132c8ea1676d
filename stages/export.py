"""export: write a quantized model in formats that others load, and check that they hold the same numbers."""

from pathlib import Path
from typing import Any

from pipeline.artifacts import contract
from pipeline.corpus.artifact import Corpus
from pipeline.export.formats import export
from pipeline.export.qnn.folder import Target
from pipeline.export.qnn.ranges import SEQUENCES
from pipeline.knobs import params
from pipeline.quant.model import QuantizedModel
from stages import run

SHOWN = 8  # tensors that are named


def work() -> str:
    args = run.begin("export", "teacher", "corpus", "quantized", "out")
    knobs = params.load().export
    contract.reading(args.teacher, contract.TEACHER)
    tokens, _ = Corpus.load(args.corpus).train()
    quantized, made = QuantizedModel.load(args.quantized)
    out = Path(args.out)
    target = Target(tokens[:SEQUENCES], knobs.qnn_chunk, knobs.qnn_context, knobs.qnn_arch, knobs.qnn_shared)
    needs = {"qnn": {"target": target}}  # by format
    for format_name in knobs.formats:
        with contract.writing(out / format_name, contract.INT4) as draft:
            draft.facts = export(quantized, args.teacher, format_name, draft.path, **needs.get(format_name, {}))
            draft.facts |= {fact: made[fact] for fact in ("coverage", "in_float") if fact in made}
        for line in told(draft.facts):
            print(f"export {out.name}, {format_name}: {line}", flush=True)
    return out.name


def told(facts: dict[str, Any]) -> list[str]:
    """What the user of an export has to know: its size; the dtype that its config names, what that costs, and why not
    float16."""
    lines = [f"{facts['weight_bytes'] / 1e6:.1f} MB"]
    if "dtype" in facts:
        lines.append(f"its config names {facts['dtype']}, which costs {facts['dtype_kl']:.2g} nats a token")
        lines += [f"not {dtype}: {reason}" for dtype, reason in facts["dtypes_passed_over"].items()]
    wide = facts["wider_than_float16"]
    if wide:
        names = ", ".join(f"{name} ({dtype})" for name, dtype in list(wide.items())[:SHOWN])
        more = f" and {len(wide) - SHOWN} more" if len(wide) > SHOWN else ""
        lines.append(f"float16 has not the range for {names}{more}")
    return lines


if __name__ == "__main__":
    run.main("export", work)
