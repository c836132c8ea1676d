"""Making a student: a float model gets the calibrated numbers, and what is not frozen gets float32 masters."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.distill.freeze import Frozen
from pipeline.distill.parallel import ALONE, Processes
from pipeline.distill.student import Learns, Rows, Student
from pipeline.knobs.freezing import ROLES
from pipeline.models import layout
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel


def prepare(
    model: PreTrainedModel,
    start: QuantizedModel,
    frozen: Frozen,
    learns: Learns,
    dtype: torch.dtype,
    processes: Processes = ALONE,
) -> Student:
    """Make a student of a float32 model.

    Args:
        model: gets `start`'s numbers, on the process's device; its linears' weights are cast to `dtype`, the forward's.
        start: the calibrated model; its latent weights become the masters, without a copy. The head keeps its codes.
        frozen: linears, or rows of them, that keep their codes.
        learns: what else learns, and how scales are found.
        processes: that share the work, and perhaps the rows.

    Raises:
        ValueError: `start` has no latent weights.
    """
    inner = [linear for linear in layout.linears(model) if linear.name in start.codes]
    whole = {name for name, rows in frozen.items() if rows is None}
    missing = [linear.name for linear in inner if linear.name not in whole | start.latent.keys()]
    if missing:
        raise ValueError(f"the calibrated model has no latent weights to train from: {sorted(missing)[:4]}")
    start.put_into(model)
    for linear in inner:
        module = model.get_submodule(linear.name)
        module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=linear.name not in whole)
    processes.shard(model, [linear.name for linear in inner])
    model.to(processes.device)
    student = Student(model, start, learns, processes)
    roles = {role for linear in inner for role in linear.parts()}
    student.known = tuple(role for role in ROLES if role in roles)
    for linear in inner:
        if linear.name not in whole:
            _add_linear(student, linear, frozen.get(linear.name))
    _add_norms_and_embeddings(student)
    student.refresh()
    return student


def _add_norms_and_embeddings(student: Student) -> None:
    """Give the student masters of what learns beside linears, each a copy of the parameter."""
    model, start, learns = student.model, student.start, student.learns
    head = model.get_output_embeddings()
    quantized_head = any(model.get_submodule(name) is head for name in start.codes)
    reading = {*layout.text_decoder(model)[1].parameters(), *(head.parameters() if head is not None else ())}
    for key, parameter in model.named_parameters():
        if key.removesuffix(".weight") in start.codes:
            continue
        vocabulary = parameter is model.get_input_embeddings().weight or (
            head is not None and parameter is head.weight and not quantized_head
        )
        norm = parameter.ndim == 1 and parameter in reading
        if (norm and learns.norms) or (vocabulary and learns.embeddings):
            parameter.requires_grad_(True)
            student.masters[key], student.modules[key] = nn.Parameter(parameter.detach().clone()), parameter


@torch.no_grad()
def _add_linear(student: Student, linear: layout.Linear, frozen: Tensor | None) -> None:
    """Give the student a linear's masters: this process's rows that are not frozen."""
    name, start, device = linear.name, student.start, student.processes.device
    number = len(start.codes[name])
    held, of_all = student.processes.rows(number), _others(frozen, number)
    here = None if of_all is None else of_all[(of_all >= held.start) & (of_all < held.stop)] - held.start
    rows = torch.arange(number)[held] if here is None else here + held.start  # among all, those that are in the master
    student.trained[name] = Rows(of_all, None if here is None else here.to(device))
    latent = start.latent[name] if len(rows) == number else start.latent[name][rows]
    student.masters[f"{name}.weight"] = nn.Parameter(latent.to(device))
    student.modules[f"{name}.weight"] = student.model.get_submodule(name).weight
    student.steps[name] = Step(*(part[rows].to(device) for part in start.steps[name]))
    if student.learns.scale == "learned":
        student.masters[f"{name}.scale"] = nn.Parameter(student.steps[name].scale.clone())
    student.roles[name] = {
        role: None if isinstance(part, slice) else torch.isin(rows, part).nonzero().squeeze(1).to(device)
        for role, part in linear.parts().items()
    }


def _others(frozen: Tensor | None, rows: int) -> Tensor | None:
    """The rows of a linear that are not frozen; None for all."""
    if frozen is None:
        return None
    free = torch.ones(rows, dtype=torch.bool)
    free[frozen] = False
    return free.nonzero().squeeze(1)
