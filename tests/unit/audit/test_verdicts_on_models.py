"""Verdicts on what a model that has learned something scores, by the measure that `evaluate` uses."""

import copy

import torch
from transformers import LlamaForCausalLM

from pipeline.audit import verdicts
from pipeline.evaluation import items, text
from pipeline.knobs.scheme import Weights
from pipeline.models import layout
from pipeline.quant import weights
from tests import tiny

LENGTH = 64
PROSE = text.windows(text.read_text("pydoc", ""), tiny.tokenizer(), 160, LENGTH)
LEARNED_FROM, SCORED = PROSE[:128], PROSE[128:]


def taught() -> LlamaForCausalLM:
    """A tiny model after some steps on prose, so that it has something to lose."""
    model = tiny.llama().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = LEARNED_FROM[torch.randint(len(LEARNED_FROM), (8,), generator=order)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False)


def rounded(model: LlamaForCausalLM, bits: int) -> LlamaForCausalLM:
    """A copy whose linears are rounded to nearest, a scale an output channel."""
    student, scheme = copy.deepcopy(model), Weights(bits)  # type: ignore[arg-type]
    for linear in layout.linears(student):
        weight = student.get_submodule(linear.name).weight
        step = weights.weight_step(weight, scheme)
        weight.copy_(weights.dequantize(weights.quantize(weight, step, scheme), step, scheme))
    return student


def scored(model: LlamaForCausalLM) -> verdicts.Scored:
    _, rows = text.perplexity(model, SCORED, lambda: None)
    return verdicts.Scored.of(items.Items(items.answers([]), items.documents(rows)))


def judged(before: LlamaForCausalLM, after: LlamaForCausalLM) -> verdicts.Comparison:
    (comparison,) = verdicts.judged(verdicts.compare(scored(before), scored(after)))
    return comparison


def test_rtn_is_worse_than_its_teacher():
    teacher = taught()
    comparison = judged(teacher, rounded(teacher, bits=2))
    assert (comparison.measure, comparison.pairs, comparison.verdict) == ("log_perplexity", len(SCORED), verdicts.WORSE)
    assert comparison.low > 0
    assert judged(rounded(teacher, bits=2), teacher).verdict == verdicts.BETTER
