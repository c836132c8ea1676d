"""What the proofs of the exports say: a table to read, and the few numbers that dvc compares."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import contract

PREFIX = "proof"  # of their numbers in the summary
COMPARED = ("top1_student", "kl_student")  # in the summary
ON_GRIDS = ("onnxruntime", "onnxruntime-genai", "qnn", "executorch")  # runtimes with inputs and KV cache on their grids
LEAST_SHOWN = 1e-3  # a KL below is shown by its power of ten
EXPORTED, INSTANCE = "{variant}-{format}.json", "{variant}.json"  # files of the artifact


@dataclass(frozen=True)
class Proofs:
    """versions: of each runtime. exports: the numbers of each export, by variant and format, as `prove` makes them.
    students: those of each variant itself, before it was exported."""

    versions: Mapping[str, str]
    exports: Mapping[tuple[str, str], Mapping[str, float]]
    students: Mapping[str, Mapping[str, float]]


def read(folder: str | Path) -> Proofs:
    """The proofs in an artifact of `prove`.

    Raises:
        ValueError: it is none, or was changed.
    """
    facts = contract.reading(folder, contract.PROOF)
    variants, formats = facts["variants"], facts["formats"]

    def numbers(name: str) -> dict[str, float]:
        return json.loads((Path(folder) / name).read_text(encoding="utf-8"))

    return Proofs(
        facts["runtimes"],
        {(v, name): numbers(EXPORTED.format(variant=v, format=name)) for v in variants for name in formats},
        {v: numbers(INSTANCE.format(variant=v)) for v in variants},
    )


def of_proofs(proofs: Proofs) -> dict[str, float]:
    """For the summary: COMPARED, as proof.{format}.{runtime}.{measure}.{variant}."""
    return {
        f"{PREFIX}.{name}.{runtime}.{measure}.{variant}": numbers[f"{measure}.{runtime}"]
        for (variant, name), numbers in proofs.exports.items()
        for runtime in runtimes(numbers)
        for measure in COMPARED
    }


def runtimes(numbers: Mapping[str, float]) -> list[str]:
    """The runtimes that an export was run in."""
    return [name.partition(".")[2] for name in numbers if name.startswith("positions.")]


def rows(proofs: Proofs) -> list[list[str]]:
    """A row a variant before its export, and one for each runtime of each format; a header first."""
    table = [["", "format", "runtime", "KL", "top-1 %", "KL to teacher", "largest difference", "same tokens", "MB"]]
    for variant, own in proofs.students.items():
        table.append([variant, "-", "as trained", "-", "-", f"{own['student.kl_teacher']:.3f}", "-", "-", "-"])
        for (other, name), numbers in proofs.exports.items():
            if other == variant:
                for runtime in runtimes(numbers):
                    table.append([variant, name, runtime, *_cells(numbers, runtime)])
    return table


def of_runtime(numbers: Mapping[str, float], runtime: str) -> dict[str, float]:
    """An export's numbers in one runtime, by their own names."""
    return {name.removesuffix(f".{runtime}"): v for name, v in numbers.items() if name.endswith(f".{runtime}")}


def is_bound(numbers: Mapping[str, float]) -> bool:
    """Whether a runtime's KLs are lower bounds, as it tells of the likeliest tokens alone."""
    return "logit_difference" not in numbers


def _cells(numbers: Mapping[str, float], runtime: str) -> list[str]:
    mine = of_runtime(numbers, runtime)
    bound = "≥ " if is_bound(mine) else ""
    kl, top1 = mine["kl_student"], f"{100 * mine['top1_student']:.1f}"
    shown = f"{bound}{_small(kl)}"
    apart = (
        _small(mine["logit_difference"])
        if "logit_difference" in mine
        else f"{mine['log_probability_difference']:.2f} nats"
    )
    same = f"{mine['same_tokens']:.0f} (least {mine['same_tokens_least']:.0f})"
    stored = numbers["weight_bytes"] / 1e6
    megabytes = f"{stored:.0f}" if stored >= 10 else f"{stored:.2g}"
    return [shown, top1, f"{bound}{mine['kl_teacher']:.3f}", apart, same, megabytes]


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.4f}" if value >= LEAST_SHOWN else f"{value:.0e}"


def note(proofs: Proofs) -> str:
    """What the table's columns are."""
    first = next(iter(proofs.exports.values()))
    measured = {r: of_runtime(numbers, r) for numbers in proofs.exports.values() for r in runtimes(numbers)}
    positions = max(mine["positions"] for mine in measured.values())
    short = {runtime: mine["positions"] for runtime, mine in measured.items() if mine["positions"] < positions}
    fewer = "".join(f" ({runtime}: {count:.0f})" for runtime, count in short.items())
    gridded = ", ".join(runtime for runtime in ON_GRIDS if runtime in measured)
    on_grids = f", and in those with the grids ({gridded}) to the variant as it was made" if gridded else ""
    bounded = ", ".join(runtime for runtime, mine in measured.items() if is_bound(mine))
    bound = f"≥ ({bounded}): all but the likeliest tokens count as one, so the KL is a lower bound. " if bounded else ""
    name, own = max(proofs.students.items(), key=lambda item: item[0] == "student")
    return (
        f"Every tensor of each file is the trained one, bit for bit ({first['tensors']:.0f} of them), and each "
        "runtime's tokenizer gives the teacher's ids for 200 texts; what falls short stops the pipeline. KL (nats a "
        "token) and top-1 agreement are with the variant as it was made, its inputs and KV cache on their grids, on "
        f"{positions:.0f} positions of held-out text{fewer}. With these in float, as most runtimes have them, the "
        f"{name} itself is at a KL of {_small(own['in_float.kl_student'])} and agrees in "
        f"{100 * own['in_float.top1_student']:.1f} %: in sampled text two tokens are often all but equally likely. "
        "The largest difference of logits is a share of the largest logit, or in nats of a log-probability; it is to "
        f"the variant with inputs in float{on_grids}. The same tokens are of greedy continuations, inputs in float. "
        f"{bound}"
        f"Versions: {', '.join(f'{runtime} {known}' for runtime, known in proofs.versions.items())}."
    )
