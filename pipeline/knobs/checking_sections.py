"""The sections of the stages that look at what was made: proofs, scores, the page.

Written as those in sections.py are, and held by the same tests.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.knobs.kinds import FORBID, Dtype, Group, Int, Names, Number, Text, Variant


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Prove:
    variants: Annotated[list[Variant], Field(min_length=1)] = Field(
        description="whose exports are run in the runtimes that they are for: rtn | ptq | student; each in all of "
        "export.formats",
    )
    sequences: Int = Field(ge=1, description="of the held-out text, on which predictions are compared")
    prompts: Int = Field(
        ge=1, description="beginnings of held-out sequences, no two alike, that are continued greedily"
    )
    prompt: Int = Field(ge=1, description="tokens of each prompt")
    tokens: Int = Field(ge=1, description="of each continuation")


@dataclass(frozen=True, kw_only=True, config=FORBID)
class References:
    long: Int = Field(
        ge=0,
        description="tokens of evaluate.text in one piece, up to the model's context; 0: none, 2 or more",
    )
    dialogues: Int = Field(ge=0, description="conversations of two turns, which the teacher answers greedily; 0: none")
    tokens: Int = Field(ge=1, description="of an answer, at most")


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Evaluate:
    source: Literal["folder", "hub"] = Field(
        description="folder (the one below) | hub (the data sets that lm-eval's own tasks name)",
    )
    benchmarks: Text = Field(
        description="folder of JSON lines files, one a task, in the schemas of the tasks' own data sets",
    )
    groups: Annotated[list[Group], Field(min_length=1)] = Field(
        description="of tasks: basic | emergent | trust | dialogue | long",
    )
    tasks: Names = Field(
        description="auto (all of the groups whose file is in the folder, or that the hub has, and all that are made "
        "by code; without gsm8k and ifeval, to which answers are written), or a list of names: docs/evaluation.md has "
        "them",
    )
    items: Int = Field(ge=0, description="of a task that is made by code; 0: its own number")
    limit: Int = Field(ge=0, description="items of any other task; 0: all")
    text: Text = Field(
        description="perplexity: pydoc (CPython's own pydoc_data.topics), or a JSON lines file in the folder, "
        "without .jsonl",
    )
    format: Literal["compressed-tensors", "dequantized"] = Field(
        description="of export.formats, the one that is loaded and scored",
    )
    windows: Int = Field(ge=2, description="perplexity: windows of the text, from its start")
    window: Int = Field(ge=2, description="perplexity: tokens a window")
    batch: Int = Field(
        ge=1,
        description="answers a forward in the harness; those of an item share its question; fewer where they are long",
    )
    instructions: Int = Field(
        ge=0, description="prompts that are answered greedily, whose answers code can judge; 0: none"
    )
    instruction_tokens: Int = Field(ge=1, description="of such an answer, at most")
    dtype: Dtype = Field(
        description="of weights and forward: float32, in which an export's weights are codes times scales, "
        "exactly, and inputs lie on their grid | bfloat16, which rounds most of both; several times "
        "faster with AMX",
    )


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Report:
    title: Text = Field(description="of the page")
    margin: Number = Field(
        gt=0, lt=1, description="share of the teacher's score: is each variant shown to lose less, task by task"
    )
