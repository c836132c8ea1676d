"""prove: run what was exported in the runtimes that it is for, and hold it against the student."""

import json
from pathlib import Path

from pipeline.artifacts import contract
from pipeline.corpus.artifact import Corpus
from pipeline.knobs import params
from pipeline.quant.model import QuantizedModel
from pipeline.runtimes import proof, references, table
from stages import run


def work() -> None:
    args = run.begin("prove", "teacher", "corpus", "int4", "out", repeated="variant")
    loaded = params.load()
    knobs, formats = loaded.prove, loaded.export.formats
    versions = table.versions(formats)
    folders = {(v, name): Path(args.int4) / v / name for v in knobs.variants for name in formats}
    contract.reading(args.teacher, contract.TEACHER)
    for folder in folders.values():
        contract.reading(folder, contract.INT4)
    quantized = dict(pair.split("=", 1) for pair in args.variant)
    text = references.text(*Corpus.load(args.corpus).test(), knobs.sequences, knobs.prompts, knobs.prompt, knobs.tokens)

    problems, speeds = list[str](), dict[str, dict]()
    with contract.writing(Path(args.out), contract.PROOF) as draft:
        for variant in knobs.variants:
            against = references.references(QuantizedModel.load(quantized[variant])[0], args.teacher, text)
            contract.write_scores(draft.path / f"{variant}.json", proof.of_student(against))
            for name in formats:
                proven = proof.prove(folders[variant, name], name, against)
                problems += [f"{variant}, {name}: {problem}" for problem in proven.problems]
                speeds[f"{variant}-{name}"] = proven.speeds
                print(f"prove {variant}, {name}: {proof.told(proven, table.runtimes_of(name))}", flush=True)
                if not proven.problems:
                    contract.write_scores(draft.path / f"{variant}-{name}.json", proven.numbers)
        if problems:
            way_out = "a format that is not needed may be left out of export.formats"
            raise ValueError("\n  ".join([f"{len(problems)} proof(s) fall short; {way_out}:", *problems]))
        draft.facts = {"runtimes": versions, "variants": knobs.variants, "formats": formats}
    _note(speeds)


def _note(speeds: dict[str, dict]) -> None:
    """Tokens a second and memory, which differ from run to run."""
    run.SPEEDS.mkdir(parents=True, exist_ok=True)
    for name, runtimes in speeds.items():
        contract.write_text(run.SPEEDS / f"{name}.json", json.dumps(runtimes) + "\n")


if __name__ == "__main__":
    run.main("prove", work)
