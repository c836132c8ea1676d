"""The sections of params.yaml as frozen dataclasses: each knob's type, and the names that a `Literal` admits.

The comments in params.yaml say what each knob means.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.knobs.freezing import Policy
from pipeline.knobs.scheme import Scheme

Dtype = Literal["auto", "bfloat16", "float32"]
Method = Literal["rtn", "mse", "gptq", "awq", "smoothquant", "awq+gptq", "smoothquant+gptq"]
Divergence = Literal["forward", "reverse", "symmetric"]
PlanBits = Literal[2, 3, 4, 5, 6, 7, 8]
Task = Literal["piqa", "hellaswag", "winogrande", "openbookqa", "arc_easy", "arc_challenge"]


@dataclass(frozen=True)
class Teacher:
    source: Literal["pypi", "hub", "path"]
    package: str
    version: str
    sha256: str
    repo: str
    revision: str
    path: str


@dataclass(frozen=True)
class Synthesize:
    strategy: Literal["hybrid", "sampled", "greedy"]
    chat: float
    sequences: int
    held_out: int
    length: int
    greedy_prefix: list[int]
    temperature: float
    stop_at_eos: bool
    batch: int
    dtype: Dtype


@dataclass(frozen=True)
class Calibrate:
    method: Method
    sequences: int
    batch: int
    dtype: Dtype
    damping: float
    block: int
    act_order: bool
    scales: Literal["output", "mse", "minmax"]
    descent: int
    fisher: bool
    migration: float
    rotation: Literal["auto", "hadamard", "none"]
    coverage: float


@dataclass(frozen=True)
class Analyze:
    sequences: int
    batch: int
    ce: float
    kl: float
    sensitivity_sequences: int
    average_bits: float
    plan_bits: list[PlanBits]


@dataclass(frozen=True)
class Targets:
    text: str
    share: float
    batch: int
    dtype: Dtype


@dataclass(frozen=True)
class Distill:
    freeze: Policy
    scale: Literal["static", "minmax", "learned"]
    scale_lr: float
    train_norms: bool
    train_embeddings: bool
    seed: int
    steps: int
    batch: int
    accumulate: int
    lr: float | Literal["auto"]
    warmup: float
    min_lr: float
    weight_decay: float
    clip: float
    ce: float
    kl: float
    divergence: Divergence
    kl_reduction: Literal["token", "batchmean"]
    hidden: float
    temperature: float
    chunk: int
    gradient_checkpointing: bool
    dtype: Dtype
    checkpoint_every: int
    processes: int
    shard: bool


@dataclass(frozen=True)
class Inspect:
    sensitivity_sequences: int


@dataclass(frozen=True)
class Export:
    format: Literal["compressed-tensors", "dequantized"]


@dataclass(frozen=True)
class Evaluate:
    source: Literal["folder", "hub"]
    benchmarks: str
    tasks: list[Task]
    limit: int
    text: str
    windows: int
    window: int
    batch: int
    dtype: Dtype


@dataclass(frozen=True)
class Report:
    title: str


@dataclass(frozen=True)
class Params:
    seed: int
    scheme: Scheme
    teacher: Teacher
    synthesize: Synthesize
    calibrate: Calibrate
    analyze: Analyze
    targets: Targets
    distill: Distill
    inspect: Inspect
    export: Export
    evaluate: Evaluate
    report: Report
