"""How well a trial does so far, from what its fits tell."""

import math
from typing import Any

from optimag_dist.tasks import metric_of


class Score:
    """The trial's metrics while it runs and at its end; ``results`` are of the fits that have ended, by their seeds.

    Args:
        seeds: in the order in which they run.
        epochs: of each fit, at most.
        monitor: the metric of validation by which the fits choose their best epochs.
    """

    def __init__(self, seeds: tuple[int, ...], epochs: int, monitor: str) -> None:
        self.seeds, self._limit, self._monitor = seeds, epochs, f"val/{monitor}"
        self._records: dict[int, dict[int, dict[str, Any]]] = {}
        self.results: dict[int, dict[str, Any]] = {}

    def epoch(self, seed: int, record: dict[str, Any]) -> None:
        """A fit's epoch; one that is told again (of an earlier life) counts once."""
        self._records.setdefault(seed, {})[record["epoch"]] = record

    @property
    def finished(self) -> bool:
        return len(self.results) == len(self.seeds)

    @property
    def diverged(self) -> str | None:
        """Of fits that have diverged, the first one's words."""
        return next((result["diverged"] for result in self.results.values() if "diverged" in result), None)

    @property
    def clock(self) -> int:
        """The position by which trials are compared: the same seed and epoch for all that are at the same.

        A fit that ends early by its patience jumps to the next seed's first epoch.
        """
        if not self._records:
            return 0
        current = max(self.seeds.index(seed) for seed in self._records)
        return current * self._limit + max(self._records[self.seeds[current]]) + 1

    @property
    def epochs(self) -> int:
        return sum(map(len, self._records.values()))

    def metrics(self, names: list[str]) -> dict[str, float]:
        """``val/...``: of each fit's best validated epoch, the mean over the fits so far; ``seconds``: of all epochs.
        NaN before the first validation, and from when a fit has diverged: what it had reached is worth nothing."""
        best = [] if self.diverged else list(map(self._best, self._records))
        metrics = {name: sum(b.get(name, math.nan) for b in best) / len(best) if best else math.nan for name in names}
        seconds = sum(r["seconds"] for records in self._records.values() for r in records.values())
        return metrics | ({"seconds": seconds} if "seconds" in metrics else {})

    def _best(self, seed: int) -> dict[str, Any]:
        sign = metric_of(self._monitor).sign
        validated = [record for record in self._records[seed].values() if self._monitor in record]
        return max(validated, key=lambda record: sign * record[self._monitor], default={})
