"""Training on several processes: plain PyTorch data parallelism, started by `torchrun`.

Each step's batch is dealt out to the processes, gradients are averaged with every image counting alike,
rank 0 writes. The balance of expert loads is that of the whole batch (`zsad.nn.moe.batch_sum`); where a last batch has
fewer images than there are processes, those without one count its first image once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from zsad.errors import ConfigError
from zsad.methods.base import Method
from zsad.train.samples import TrainingBatch


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the processes of a training.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the one process that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            distributed.barrier()

    def mean(self, values: Tensor, *, weight: float) -> Tensor:
        """Return the mean of a vector over all processes, whose weights sum to `world_size`."""
        if self.world_size == 1:
            return values
        summed = values * weight
        distributed.all_reduce(summed)
        return summed / self.world_size

    def check_batch(self, size: int) -> None:
        """Refuse a batch size that cannot be dealt out evenly to all processes; raises ConfigError."""
        if size % self.world_size:
            raise ConfigError(
                f"batch_size {size} cannot be dealt out evenly to {self.world_size} processes: "
                f"use a multiple of {self.world_size}"
            )

    def share(self, batch: Sequence[int]) -> tuple[list[int], float]:
        """Return this process' rows of a batch and the weight of their mean loss.

        With weights `rows here * processes / rows in all` the average over processes is the mean over the
        batch. A process that gets nothing of a short last batch takes part with one row of weight 0.
        """
        rows = list(batch[self.rank :: self.world_size])
        if not rows:
            return [batch[0]], 0.0
        return rows, len(rows) * self.world_size / len(batch)


def current_worker() -> Worker:
    """Return this process' rank in the process group that was joined, or that of a process alone."""
    if distributed.is_available() and distributed.is_initialized():
        return Worker(distributed.get_rank(), distributed.get_world_size())
    return Worker()


@contextmanager
def joined(environment: Mapping[str, str], *, device: str | None = None) -> Iterator[torch.device]:
    """Join the process group that `torchrun` describes, for as long as the block runs.

    Args:
        environment: `os.environ`; without `WORLD_SIZE` above 1 nothing is joined.
        device: "cpu" or "cuda"; default: CUDA where there is some.

    Yields:
        The device of this process.

    Raises:
        ConfigError: more processes on this machine than it has GPUs, or an incomplete environment.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if int(environment.get("WORLD_SIZE", "1")) <= 1:
        yield torch.device(kind)
        return
    missing = [
        name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment
    ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is set but not {', '.join(missing)}: start several processes with torchrun"
        )
    local = int(environment["LOCAL_RANK"])
    cuda = kind.startswith("cuda")
    if cuda and local >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}: "
            f"start at most one process a GPU (torchrun --nproc-per-node)"
        )
    torch_device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(torch_device)
    # PyTorch reads the same variables itself: under torchrun the store to meet at already exists.
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield torch_device
    finally:
        distributed.destroy_process_group()


class LossModule(nn.Module):
    """Losses of a method as a forward pass, which is what data parallelism hooks into.

    Args:
        method: whose losses are computed.
        touch_all: make the total depend on every parameter, with gradient 0 where the losses do not: which
            parameters a batch uses may differ between processes, which all wait for the gradients of all.
    """

    def __init__(self, method: Method, *, touch_all: bool = False) -> None:
        super().__init__()
        self.method = method
        self.touch_all = touch_all

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss and its terms; see `Method.losses`."""
        terms = self.method.losses(batch.features, batch.masks, batch.labels)
        weighted = [term.float() for name, term in terms.items() if not name.startswith("raw_")]
        total = torch.stack(weighted).sum()
        if self.touch_all:
            total = total + sum(0.0 * p.sum() for p in self.method.parameters() if p.requires_grad)
        return total, terms


def parallel(method: Method, worker: Worker) -> nn.Module:
    """Return a `LossModule`, wrapped for data parallelism where there are several processes."""
    if worker.world_size == 1:
        return LossModule(method)
    device = next(method.parameters()).device
    return DistributedDataParallel(
        LossModule(method, touch_all=True), device_ids=[device] if device.type == "cuda" else None
    )
