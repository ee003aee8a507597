"""What an epoch has added up so far; part of a checkpoint, so that a resumed epoch ends with the same record."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from optimag_dist.types import StepBatch

Batch = TypeVar("Batch")
# Figures of a rank that are seconds: over ranks the slowest counts, the others' figures are added up.
_TIMES = ("seconds", "wait_s", "ufgw_s")


class EpochTotals:
    """Sums over an epoch's steps.

    Attributes:
        steps, groups, items: over all ranks, so the same on each; ``steps`` is the position in the epoch.
        wait_s: seconds this rank has waited for its loader.
        ufgw_s: seconds of this rank's transport problems, forward.
    """

    def __init__(self) -> None:
        self.steps = self.groups = self.items = 0
        self.wait_s = self.ufgw_s = 0.0
        self._sums: dict[str, Tensor | float] = {"kept_ppr": 0.0, "seeds": 0.0}
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    def start_clock(self) -> None:
        """An epoch's seconds count from here, and go on from those of a restored one."""
        self._started = time.perf_counter()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """``batches``; the time until each comes is added to ``wait_s``."""
        start = time.perf_counter()
        for batch in batches:
            self.wait_s += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def add(self, batch: StepBatch, figures: Mapping[str, Tensor]) -> None:
        """A step's figures of this rank, as :class:`~optimag_dist.train.step.StepLoss` returns them."""
        self.steps += 1
        self.groups += batch.num_groups
        self.items += sum(batch.num_items)
        mine = {
            "kept_ppr": sum(group.kept_ppr for group in batch.groups) / batch.num_groups,
            "seeds": sum(len(group.seed_rows) for group in batch.groups),
        }
        for name, value in (mine | {name: figure.double() for name, figure in figures.items()}).items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def pack(self) -> Tensor:
        """(figures,) float64 on the CPU: this rank's sums, then its seconds. Waits for the device."""
        sums = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in self._sums.values()])
        seconds = self._seconds_before + time.perf_counter() - self._started
        return torch.cat([sums, torch.tensor([seconds, self.wait_s, self.ufgw_s], dtype=torch.float64)])

    def over_ranks(self, ranks: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """(world_size, figures) of :meth:`pack` → sums over ranks by name, and the slowest rank's seconds by name."""
        sums, times = ranks[:, : len(self._sums)].sum(0), ranks[:, len(self._sums) :].amax(0)
        return (
            dict(zip(self._sums, sums.tolist(), strict=True)),
            dict(zip(_TIMES, times.tolist(), strict=True)),
        )

    def state(self, ranks: Tensor) -> dict[str, Any]:
        """For a checkpoint, given all ranks' :meth:`pack`."""
        counts = {"steps": self.steps, "groups": self.groups, "items": self.items}
        return {"counts": counts, "names": list(self._sums), "ranks": ranks.cpu()}

    @classmethod
    def restored(cls, state: dict[str, Any], rank: int, world_size: int) -> "EpochTotals":
        """From :meth:`state`; another number of ranks than it was saved by shares the sums out."""
        totals, names, ranks = cls(), state["names"], state["ranks"].cpu()
        totals.steps, totals.groups, totals.items = (state["counts"][n] for n in ("steps", "groups", "items"))
        same = len(ranks) == world_size
        sums = ranks[rank] if same else ranks.sum(0) / world_size
        times = ranks[rank] if same else ranks.amax(0)
        totals._sums = dict(zip(names, sums[: len(names)].tolist(), strict=True))
        totals._seconds_before, totals.wait_s, totals.ufgw_s = times[len(names) :].tolist()
        return totals
