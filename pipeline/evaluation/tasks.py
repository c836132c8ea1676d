"""Every task that evaluate can ask, a line each: those of lm-eval, and those whose items code makes.

Most are scored by the likelihoods of given answers. To two of them (gsm8k, ifeval) the model writes its answers, which
takes long: they are asked where they are named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation import schemas
from pipeline.evaluation.made import table as made
from pipeline.evaluation.schemas import Schema

BASIC, EMERGENT, TRUST, DIALOGUE, LONG = GROUPS = ("basic", "emergent", "trust", "dialogue", "long")

INSTRUCTIONS = "instructions"  # the task of the prompts that `evaluate.instructions` asks for, answered in writing


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        group: of GROUPS. part: what of the group it asks.
        file: lm-eval's, under its folder of tasks; empty for a task whose items code makes.
        metric: lm-eval's, by which an answer is right. filter: lm-eval's, through which it goes before.
        split: of lm-eval's, in which its items are.
        schema: of the rows of its file in a folder.
        hub: the name of lm-eval's task or group that takes it from the hub; empty where there is none.
        cluster: the field of a row that numbers the items which come as one; empty, or missing in the rows: each stands
            alone. level: the field that tells how hard an item is or of which kind; likewise.
        against: the task of the same items, row by row, as they were before they were changed for this one.
        compares: two levels of it whose difference, the second less the first, is a figure of its own.
        chance: what guessing scores; None: one over an item's choices.
        balanced: its answers come unequally often, so that accuracy is also a mean over them.
        generates: the model writes its answers. packages: that judge them, and are no part of a plain install.
    """

    group: str
    part: str
    file: str
    metric: str
    split: str
    schema: Schema
    hub: str = ""
    cluster: str = ""
    level: str = ""
    against: str = ""
    compares: tuple[str, str] | None = None
    chance: float | None = None
    balanced: bool = False
    generates: bool = False
    filter: str = "none"
    packages: tuple[str, ...] = ()

    @property
    def optional(self) -> dict[str, type | tuple[type, ...]]:
        """Fields that its rows may have beside those of its schema."""
        kinds: dict[str, type | tuple[type, ...]] = {self.cluster: int, self.level: (str, int)}
        return {name: kind for name, kind in kinds.items() if name}


def harness_folder() -> Path:
    """Where lm-eval keeps its tasks. It is not imported for that, as that takes seconds."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


class _Loader(yaml.SafeLoader):
    """Of a file that may name functions, which are left out."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _content(file: str) -> dict[str, Any]:
    """What one of lm-eval's files says."""
    content: dict[str, Any] = yaml.load((harness_folder() / file).read_text(encoding="utf-8"), _Loader)
    return content


_BBH = "leaderboard/bbh_mc"
_GSM8K = "gsm8k/gsm8k-cot.yaml"
UNSAID = 256  # tokens of a written answer at most, where lm-eval's file does not say; so has lm-eval itself


def _bbh(name: str) -> Task:
    file = f"{_BBH}/{name}.yaml"
    choices = _content(file)["doc_to_choice"]
    schema = schemas.target_among(choices)
    return Task(EMERGENT, "multi-step", file, "acc_norm", "test", schema, f"leaderboard_bbh_{name}")


def _glue(name: str, schema: Schema) -> dict[str, Task]:
    """The items of a set as they were, and attacked."""
    line = partial(Task, TRUST, "robustness", f"glue/{name}/default.yaml", "acc", "validation", schema)
    return {f"adv_{name}_clean": line(), f"adv_{name}": line(against=f"adv_{name}_clean")}


_VALID, _TEST = "validation", "test"
_LAMBADA = "lambada/lambada_openai.yaml"
_ETHICS = partial(Task, TRUST, "ethics", metric="acc", split=_TEST, cluster="group", balanced=True)
_CLOZE = partial(Task, file=_LAMBADA, metric="acc", split=_TEST, schema=schemas.CLOZE, chance=0.0)
BBH = (
    *("boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "formal_fallacies"),
    *("geometric_shapes", "hyperbaton", "logical_deduction_five_objects", "logical_deduction_seven_objects"),
    *("logical_deduction_three_objects", "movie_recommendation", "navigate", "object_counting"),
    *("penguins_in_a_table", "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection"),
    *("snarks", "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects"),
    *("tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies"),
)

PUBLIC: Mapping[str, Task] = {
    "piqa": Task(BASIC, "reasoning", "piqa/piqa.yaml", "acc", _VALID, schemas.PIQA, "piqa"),
    "hellaswag": Task(
        BASIC, "reasoning", "hellaswag/hellaswag.yaml", "acc_norm", _VALID, schemas.HELLASWAG, "hellaswag"
    ),
    "winogrande": Task(
        BASIC, "understanding", "winogrande/default.yaml", "acc", _VALID, schemas.WINOGRANDE, "winogrande"
    ),
    "openbookqa": Task(
        BASIC, "reasoning", "openbookqa/openbookqa.yaml", "acc_norm", _TEST, schemas.OPENBOOKQA, "openbookqa"
    ),
    "arc_easy": Task(BASIC, "reasoning", "arc/arc_easy.yaml", "acc", _TEST, schemas.ARC, "arc_easy"),
    "arc_challenge": Task(
        BASIC, "reasoning", "arc/arc_challenge.yaml", "acc_norm", _TEST, schemas.ARC, "arc_challenge"
    ),
    "lambada_openai": _CLOZE(BASIC, "language modelling", hub="lambada_openai"),
    "blimp": Task(
        BASIC, "understanding", "blimp/adjunct_island.yaml", "acc", _VALID, schemas.BLIMP, "blimp", level="UID"
    ),
    "mmlu": Task(
        *(EMERGENT, "knowledge", "mmlu/continuation/_continuation_template_yaml", "acc_norm", _TEST, schemas.MMLU),
        hub="mmlu_continuation",
        level="subject",
    ),
    **{f"bbh_{name}": _bbh(name) for name in BBH},
    "strategyqa": Task(
        *(EMERGENT, "multi-step", "bigbench/multiple_choice/strategyqa.yaml", "acc", _TEST, schemas.STRATEGYQA),
        hub="bigbench_strategyqa_multiple_choice",
    ),
    "gsm8k": Task(  # the last number of an answer: in which words it is told differs by what a model was trained on
        *(EMERGENT, "multi-step", _GSM8K, "exact_match", _TEST, schemas.GSM8K, "gsm8k_cot"),
        chance=0.0,
        generates=True,
        filter="flexible-extract",
    ),
    "ifeval": Task(
        *(EMERGENT, "instruction following", "ifeval/ifeval.yaml", "prompt_level_strict_acc", _TEST, schemas.IFEVAL),
        hub="ifeval",
        chance=0.0,
        generates=True,
        packages=("langdetect", "immutabledict", "nltk"),
    ),
    "truthfulqa_mc1": Task(
        *(TRUST, "hallucination", "truthfulqa/truthfulqa_mc1.yaml", "acc", _VALID, schemas.TRUTHFULQA),
        hub="truthfulqa_mc1",
    ),
    "ethics_cm": _ETHICS(file="hendrycks_ethics/commonsense.yaml", schema=schemas.COMMONSENSE, hub="ethics_cm"),
    "ethics_deontology": _ETHICS(
        file="hendrycks_ethics/deontology.yaml", schema=schemas.DEONTOLOGY, hub="ethics_deontology"
    ),
    "ethics_justice": _ETHICS(file="hendrycks_ethics/justice.yaml", schema=schemas.JUSTICE, hub="ethics_justice"),
    "ethics_virtue": _ETHICS(file="hendrycks_ethics/virtue.yaml", schema=schemas.VIRTUE, hub="ethics_virtue"),
    **_glue("sst2", schemas.SST2),
    **_glue("qqp", schemas.QQP),
    **_glue("mnli", schemas.MNLI),
    **_glue("qnli", schemas.QNLI),
    **_glue("rte", schemas.RTE),
    "longeval_cloze": _CLOZE(LONG, "lines", cluster="case", level="lines"),
    "litm_cloze": _CLOZE(LONG, "multi-document QA", cluster="item", level="position"),
}


def of_made(line: made.Made) -> Task:
    """The task of items that code makes."""
    about = (line.group, line.part, "", "acc", _TEST, schemas.MADE)
    return Task(*about, cluster="cluster", level="level", compares=line.compares)


TASKS: dict[str, Task] = {**PUBLIC, **{name: of_made(line) for name, line in made.MADE.items()}}


def preamble(task: str) -> str:
    """About what every question of gsm8k or of one of BIG-Bench Hard's tasks begins with; of others nothing."""
    if not TASKS[task].file.startswith((_BBH, _GSM8K)):
        return ""
    file = _content(TASKS[task].file)
    samples = [(shot.get("input", shot.get("question")), shot["target"]) for shot in file["fewshot_config"]["samples"]]
    return file.get("description", "") + "".join(f"Q: {asked}\nA: {target}\n\n" for asked, target in samples)


def room(task: str) -> int:
    """Tokens that a written answer may have; 0 of a task whose answers are given."""
    if not TASKS[task].generates:
        return 0
    return int(_content(TASKS[task].file)["generation_kwargs"].get("max_gen_toks", UNSAID))


def in_writing(task: str) -> bool:
    """Whether a model writes its answers to it, so that it is no part of the mean accuracy."""
    return task == INSTRUCTIONS or (task in TASKS and TASKS[task].generates)


def chance(task: str, choices: int) -> float:
    """What guessing scores on an item of so many choices; 0 where the answer is written."""
    known = TASKS[task].chance if task in TASKS else None
    if known is None:
        return 1 / choices if choices else 0.0
    return known


def family(task: str) -> str:
    """The task whose items a task's items are, changed or not: mostly itself."""
    return (TASKS[task].against if task in TASKS else "") or task
