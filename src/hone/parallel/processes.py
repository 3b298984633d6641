"""The processes of one run, as ``torchrun`` starts them: each computes a part of every step.

What one of them does alone (writing files, showing progress) is done by the first. A process that
fails leaves the group, and the others, which wait for it, are told so at once.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from hone.core.errors import ConfigError, HoneError

# Long enough for what the first process does alone, such as an evaluation.
_PATIENCE = timedelta(hours=1)
_BUCKET_BYTES = 64 * 2**20


class Processes:
    """This process and its peers; used in a ``with``, it leaves them at the end.

    Attributes:
        rank: of this process, from 0.
        count: number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        """A process that works alone; :func:`join_processes` makes the others."""
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    @torch.no_grad()
    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace ``tensors`` by their sums over all processes, the same bits in each.

        Raises:
            HoneError: another process has stopped; so in the methods below.
        """
        if self.count == 1:
            return
        with self._together():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.all_reduce(flat)
                pieces = flat.split([tensor.numel() for tensor in bucket])
                for tensor, piece in zip(bucket, pieces, strict=True):
                    tensor.copy_(piece.view_as(tensor))

    @torch.no_grad()
    def gather(self, tensor: Tensor) -> list[Tensor]:
        """``tensor`` of every process, in order of rank; they may differ in their number of rows.

        No gradient flows through it.
        """
        if self.count == 1:
            return [tensor.detach()]
        with self._together():
            rows = torch.zeros(self.count, dtype=torch.int64, device=tensor.device)
            rows[self.rank] = len(tensor)
            dist.all_reduce(rows)
            lengths = rows.tolist()
            padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
            padded[: len(tensor)] = tensor
            gathered = [torch.empty_like(padded) for _ in lengths]
            dist.all_gather(gathered, padded)
            return [found[:n] for found, n in zip(gathered, lengths, strict=True)]

    def total(self, value: float) -> float:
        """The sum of ``value`` over all processes."""
        if self.count == 1:
            return value
        summed = torch.tensor([value], dtype=torch.float64)
        self.sum_([summed])
        return float(summed)

    def any(self, value: bool) -> bool:
        """Whether ``value`` is true in one process at least."""
        return self.total(float(value)) > 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.total(0.0)

    def leave(self) -> None:
        """Leave the group; whoever waits for this process is told."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def leaving_on_error(self) -> Iterator[None]:
        """Leave the group when the block raises, so that the others do not wait for this one."""
        try:
            yield
        except BaseException:
            self.leave()
            raise

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            raise HoneError(
                f"Process {self.rank} of {self.count} goes no further: another process of this run "
                "has stopped. Its own message says why."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()


def join_processes(environment: Mapping[str, str] = os.environ) -> Processes:
    """Join the processes that ``torchrun`` started, each with a device of its own if there are any.

    Without ``torchrun`` this process works alone. Sums go through NCCL between CUDA devices, and
    through Gloo in the host's memory.

    Raises:
        ConfigError: the environment names no place in the group, or more processes than devices.
        HoneError: the others cannot be reached.
    """
    try:
        count = int(environment.get("WORLD_SIZE", "1"))
        if count == 1:
            return Processes()
        rank = int(environment["RANK"])
        local = int(environment.get("LOCAL_RANK", rank))
        where = f"{environment['MASTER_ADDR']}:{int(environment['MASTER_PORT'])}"
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"The environment has WORLD_SIZE, but something beside it is missing or no number: "
            f"{error}. Start several processes with torchrun, which sets all that they need."
        ) from error
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise ConfigError(
            f"Process {local} of this host finds no device of its own: there are "
            f"{torch.cuda.device_count()}. Start as many processes as there are devices."
        )
    if cuda:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method=f"tcp://{where}",
            rank=rank,
            world_size=count,
            timeout=_PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise HoneError(
            f"Process {rank} of {count} reaches no peers at {where}: {error}"
        ) from error
    return Processes(rank, count)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one kind that are sent together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        fits = not bucket or (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not fits or size + tensor.nbytes > _BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
