"""Prove an export in a runtime of an environment of its own, as the stage `prove` does in those of the project's.

    python -m pipeline.elsewhere FOLDER --runtime vllm --python .venv-vllm/bin/python …

`make prove-vllm` and `make prove-openvino` make the environments.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.elsewhere.environments import ELSEWHERE


def main() -> None:
    """Print what the proof comes to, and its numbers as JSON. A ValueError is the user's, and shown as one line."""
    args = _options(sys.argv[1:])
    try:
        _prove(args)
    except ValueError as error:
        sys.exit(f"prove: {error}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.elsewhere", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the export: data/int4/student/onnx, say")
    parser.add_argument("--runtime", required=True, choices=ELSEWHERE)
    parser.add_argument("--python", required=True, type=Path, help="of the environment that has the runtime")
    for name, what in (
        ("quantized", "what was exported: data/student, say"),
        ("teacher", "the float model"),
        ("corpus", "whose held-out text it is run on"),
    ):
        parser.add_argument(f"--{name}", required=True, type=Path, help=what)
    return parser.parse_args(arguments)


def _prove(args: argparse.Namespace) -> None:
    from pipeline.artifacts import contract  # what they import takes seconds, and --help does not need it
    from pipeline.corpus.artifact import Corpus
    from pipeline.elsewhere import environments
    from pipeline.export import formats
    from pipeline.knobs import params
    from pipeline.quant.model import QuantizedModel
    from pipeline.runtimes import proof, references

    chosen, knobs = ELSEWHERE[args.runtime], params.load().prove
    version = environments.installed(args.runtime, args.python)
    contract.reading(args.teacher, contract.TEACHER)
    stored = contract.reading(args.folder, contract.INT4).get("format")
    if stored != chosen.format:
        raise ValueError(f"{args.folder} has the format {stored!r}, and {args.runtime} opens {chosen.format}")
    text = references.text(*Corpus.load(args.corpus).test(), knobs.sequences, knobs.prompts, knobs.prompt, knobs.tokens)
    quantized = QuantizedModel.load(args.quantized)[0]
    against = references.references(quantized, args.teacher, text)
    ends = environments.quantized_ends(against.model, quantized) if chosen.float_ends else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder
        if ends:
            folder = Path(scratch)
            print(f"{args.runtime} does not read quantized ends as the file has them: {', '.join(ends)} go into float")
            against = dataclasses.replace(against, quantized=environments.with_floats(quantized, ends))
            formats.export(against.quantized, args.teacher, chosen.format, folder)
        runtimes = {args.runtime: environments.runtime(args.runtime, args.python)}
        proven = proof.prove(folder, chosen.format, against, runtimes)
    print(f"prove {args.folder} in {chosen.package} {version}: {proof.told(proven, runtimes)}")
    speed = {name: value for name, value in proven.speeds.get(args.runtime, {}).items() if name != "megabytes"}
    print(json.dumps({"runtime": args.runtime, "version": version, "in_float": ends, **proven.numbers, "speed": speed}))
    if proven.problems:
        raise ValueError("\n  ".join(proven.problems))


if __name__ == "__main__":
    main()
