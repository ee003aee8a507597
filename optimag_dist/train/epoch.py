"""What an epoch has added up so far; part of a checkpoint, so that a resumed epoch ends with the same record."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from optimag_dist.train.metrics import Number, StepMetrics, Stopwatch
from optimag_dist.types import StepBatch
from optimag_dist.ufgw import REMEDIES

Batch = TypeVar("Batch")
# A rank's seconds are the last numbers of its row.
_TIMES = 3


@dataclass(frozen=True)
class EpochMetrics:
    """An epoch over all ranks.

    Attributes:
        steps, groups, items: how many there were.
        sums: over the steps; numbers.
        kept_ppr, seeds: share of PPR mass that stayed inside its group, and nodes of all groups, summed over steps.
        first_loss: of the first step.
        seconds, wait_s, ufgw_s: of the slowest rank: in all, waiting for its loader, and of transport problems forward.
    """

    steps: int
    groups: int
    items: int
    sums: StepMetrics
    kept_ppr: float
    seeds: float
    first_loss: float
    seconds: float
    wait_s: float
    ufgw_s: float

    def signs(self) -> dict[str, float]:
        """Sign of a useless plan → share of the epoch's transport problems that showed it."""
        signs = self.sums.signs
        return {sign: float(signs[sign]) / self.groups for sign in REMEDIES if sign in signs}

    def record(self, epoch: int, *, regularised: bool) -> dict[str, Any]:
        """What is told of the epoch: a line of ``metrics.jsonl``."""
        sums, steps = self.sums, self.steps
        record = {
            "epoch": epoch,
            "loss": (sums.task_loss + sums.alignment) / steps,
            "task_loss": sums.task_loss / steps,
            "steps": steps,
            "seconds": self.seconds,
            "wait_s": self.wait_s,
            "targets_per_s": self.items / self.seconds,
        }
        record |= {f"task_loss/{name}": loss / steps for name, loss in sums.task_losses.items()}
        if regularised:
            record |= {"alignment": sums.alignment / steps, "kept_ppr": self.kept_ppr / steps}
            record |= {"ufgw_s": self.ufgw_s, "seeds_per_s": self.seeds / self.seconds}
            record |= {f"kept_mass/{m}": kept / sums.nodes[m] for m, kept in sums.kept_mass.items() if sums.nodes[m]}
            record |= {f"transport/{sign}": share for sign, share in self.signs().items()}
        return record


class EpochTotals:
    """This rank's sums over an epoch's steps. ``steps``, ``groups`` and ``items`` are over all ranks; the first is the
    position in the epoch."""

    def __init__(self, ufgw_time: Stopwatch) -> None:
        self.steps = self.groups = self.items = 0
        self._sums = StepMetrics()
        self._kept_ppr = self._seeds = 0.0
        self._first_loss: Number = 0.0
        self._ufgw_time = ufgw_time
        self._wait_s = self._ufgw_s = self._seconds_before = 0.0
        self._started = time.perf_counter()

    def start_clock(self) -> None:
        """An epoch's seconds count from here, and go on from those of a restored one."""
        self._started = time.perf_counter()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """``batches``; the time until each comes counts as waiting."""
        start = time.perf_counter()
        for batch in batches:
            self._wait_s += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def add(self, batch: StepBatch, metrics: StepMetrics) -> None:
        if self.steps == 0:
            self._first_loss = metrics.task_loss + metrics.alignment
        self.steps += 1
        self.groups += batch.num_groups
        self.items += sum(batch.num_items)
        self._kept_ppr += sum(group.kept_ppr for group in batch.groups) / batch.num_groups
        self._seeds += sum(len(group.seed_rows) for group in batch.groups)
        self._sums = self._sums + metrics.double()

    def of_all_ranks(self, device: torch.device, world_size: int) -> EpochMetrics:
        """The epoch so far; waits for the device, and for the other ranks."""
        names, ranks = self._of_ranks(device, world_size)
        sums = dict(zip(names, ranks[:, :-_TIMES].sum(0).tolist(), strict=True))
        seconds, wait_s, ufgw_s = ranks[:, -_TIMES:].amax(0).tolist()
        rest = {name: sums[name] for name in ("kept_ppr", "seeds", "first_loss")}
        times = {"seconds": seconds, "wait_s": wait_s, "ufgw_s": ufgw_s}
        return EpochMetrics(sums=StepMetrics.from_named(sums), **self._counts, **rest, **times)

    def state(self, device: torch.device, world_size: int) -> dict[str, Any]:
        """For a checkpoint; waits as :meth:`of_all_ranks` does."""
        names, ranks = self._of_ranks(device, world_size)
        return {"counts": self._counts, "names": names, "ranks": ranks.cpu()}

    @property
    def _counts(self) -> dict[str, int]:
        return {"steps": self.steps, "groups": self.groups, "items": self.items}

    def restore(self, state: dict[str, Any], rank: int, world_size: int) -> None:
        """Take up :meth:`state`; another number of ranks than it was saved by shares the sums out."""
        names, ranks = state["names"], state["ranks"].cpu()
        self.steps, self.groups, self.items = (state["counts"][n] for n in ("steps", "groups", "items"))
        same = len(ranks) == world_size
        mine = (ranks[rank] if same else ranks.sum(0) / world_size)[:-_TIMES]
        sums = dict(zip(names, mine.tolist(), strict=True))
        self._sums = StepMetrics.from_named(sums)
        self._kept_ppr, self._seeds, self._first_loss = sums["kept_ppr"], sums["seeds"], sums.get("first_loss", 0.0)
        times = ranks[rank] if same else ranks.amax(0)
        self._seconds_before, self._wait_s, self._ufgw_s = times[-_TIMES:].tolist()

    def _of_ranks(self, device: torch.device, world_size: int) -> tuple[list[str], Tensor]:
        """The numbers' names, and all ranks' numbers and then seconds, (world_size, numbers) float64."""
        rest = {"kept_ppr": self._kept_ppr, "seeds": self._seeds, "first_loss": self._first_loss}
        named = self._sums.named() | rest
        numbers = [torch.as_tensor(value, dtype=torch.float64).cpu() for value in named.values()]
        self._ufgw_s += self._ufgw_time.take()
        seconds = self._seconds_before + time.perf_counter() - self._started
        times = torch.tensor([seconds, self._wait_s, self._ufgw_s], dtype=torch.float64)
        mine = torch.cat([torch.stack(numbers), times]).to(device)
        if world_size == 1:
            return list(named), mine[None]
        ranks = [torch.empty_like(mine) for _ in range(world_size)]
        dist.all_gather(ranks, mine)
        return list(named), torch.stack(ranks)
