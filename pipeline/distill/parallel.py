"""Several processes: each step's sequences spread over them, their gradients summed, weights sharded where asked.

accelerate finds out who this process is and which device it has, torch's launcher starts the processes on one machine,
and FSDP2 shards each decoder layer's linears by rows. Their scales are by row, too, so quantizing needs no one else.
Embeddings, norms and the head are whole in each process. What is computed does not depend on the number of processes,
up to the order of sums.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.launcher.api import ChildFailedError, LaunchConfig, elastic_launch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pipeline.models import forward, layout

CPU = torch.device("cpu")
SHARED_BY = "PERMAFROST_JOBS"  # set by pipeline/flow/sweep.py, together with OMP_NUM_THREADS
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Processes:
    """This process (rank, from 0) among `count`, its device, and whether the layers' weights are sharded over them."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count > 1:
            for waiting in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                waiting.wait()

    def rows(self, number: int) -> slice:
        """Which of a weight's rows this process holds: torch.chunk's share if they are sharded, else all."""
        if not self.sharded:
            return slice(0, number)
        size = -(-number // self.count)
        return slice(min(self.rank * size, number), min((self.rank + 1) * size, number))

    def gather(self, mine: Tensor) -> Tensor:
        """Every process's rows, one after the other; they may have different numbers of them."""
        if not self.sharded:
            return mine
        lengths = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(self.count)]
        distributed.all_gather(lengths, torch.tensor([len(mine)], device=mine.device))
        room = mine.new_zeros((max(int(n) for n in lengths), *mine.shape[1:]))
        room[: len(mine)] = mine
        parts = [torch.empty_like(room) for _ in range(self.count)]
        distributed.all_gather(parts, room)
        return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])

    def shard(self, model: PreTrainedModel, linears: Sequence[str]) -> None:
        """Shard these linears' weights by rows, layer by layer, where that was asked for; all else stays whole."""
        if not self.sharded:
            return
        mesh = init_device_mesh(self.device.type, (self.count,))
        exact = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        chosen = {model.get_submodule(name).weight for name in linears}
        whole = set(model.parameters()) - chosen
        layers, root = list(layout.decoder_layers(model)[1]), layout.backbone(model)
        for module in [*layers, root]:  # the root last: it lets the layers know of each other
            sharded = fully_shard(module, mesh=mesh, mp_policy=exact, ignored_params=whole)
            if module is not root:
                sharded.set_force_sum_reduction_for_comms(True)  # the loss is a share of the step's mean already
                sharded.set_gradient_divide_factor(1.0)

    def leave(self) -> None:
        """Part from the others, when all is done."""
        if self.count > 1:
            distributed.barrier()
            distributed.destroy_process_group()


ALONE = Processes()


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds, without a copy; under no_grad."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def join(sharded: bool) -> Processes:
    """This process as the launcher made it, or the only one there is.

    Raises:
        ValueError: sharding is asked for, and there is nobody to share with.
    """
    state = PartialState(cpu=forward.device().type == "cpu")
    if sharded and state.num_processes == 1:
        raise ValueError("distill.shard is true, but there is one process; set distill.processes to 2 or more")
    if launched() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    return Processes(state.process_index, state.num_processes, state.device, sharded)


def launched() -> bool:
    """Whether a launcher (ours, torchrun, accelerate launch) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(module: str, arguments: list[str], processes: int) -> None:
    """Run a module in so many processes on this machine, until all have ended well.

    Raises:
        ValueError: there are fewer GPUs, or a process failed or was killed, which ended the others; names it.
    """
    if forward.device().type == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(
            f"distill.processes: {processes} are more than this machine's {torch.cuda.device_count()} GPUs"
        )
    divide_cores(processes)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        raise ValueError(_what_failed(error)) from None
    except SignalException as error:
        sys.exit(128 + error.sigval)


def divide_cores(processes: int) -> None:
    """Give each process its share of the cores, or of those that a sweep left to this run; a user's setting stays."""
    jobs = int(os.environ.get(SHARED_BY, 0))
    if jobs or "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // (processes * max(1, jobs))))


def _what_failed(error: ChildFailedError) -> str:
    """Which process failed first, and how; a signal from outside comes before what it did to the others."""
    killed = {rank: failure for rank, failure in error.failures.items() if failure.exitcode == -signal.SIGKILL}
    rank, failure = min((killed or error.failures).items(), key=lambda pair: pair[1].timestamp)
    name = f"process {rank} (pid {failure.pid})"
    if failure.exitcode < 0:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
        return f"{name} {how}, so the others were ended; run again to go on from the last checkpoint"
    return f"{name} ended with exit code {failure.exitcode}, so the others were ended; its message is above"


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
