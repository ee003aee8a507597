"""A fit's host that tells Ray's metrics and the experiment trackers what it hears."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimag_dist.telemetry import TrackingOptions
from optimag_dist.telemetry.metrics import FitMetrics
from optimag_dist.telemetry.trackers import Trackers
from optimag_dist.train.fit import Fit
from optimag_dist.train.host import Host, Wish
from optimag_dist.train.log import RESULT, read_result


@contextmanager
def telling(
    host: Host, fit: Fit, rank: int, *, run: str, tracking: TrackingOptions, say: Callable[[str], None] = print
) -> Iterator[Host]:
    """``host`` with telemetry about ``fit``; at the end, waits a bounded time for the trackers.

    Args:
        rank: only the first one tells.
        run: name of the run or sweep.
        say: called, from a thread, with a line for people when a tracker fails.
    """
    if rank > 0:
        yield host
        return
    params = {"variant": fit.variant, "seed": fit.seed, **fit.config.model_dump(mode="json")}
    metrics = FitMetrics(run, fit.variant, fit.seed)
    trackers = Trackers(tracking, group=run, name=f"{fit.variant} seed {fit.seed}", directory=fit.directory, say=say)
    try:
        yield _Telling(host, metrics, trackers, params)
    finally:
        metrics.close()
        trackers.close()


class _Telling(Host):
    def __init__(self, host: Host, metrics: FitMetrics, trackers: Trackers, params: dict[str, Any]) -> None:
        self._host, self._metrics, self._trackers, self._params = host, metrics, trackers, params
        self._saving_since = 0.0

    def beat(self, phase: str, epoch: int, step: int) -> None:
        if phase == "save":
            self._saving_since = time.perf_counter()
        self._host.beat(phase, epoch, step)

    def epoch(self, record: dict[str, Any]) -> None:
        self._metrics.epoch(record)
        self._trackers.epoch(record, self._params)
        self._host.epoch(record)

    def saved(self, path: Path) -> None:
        if path.name == "checkpoint.pt":
            self._metrics.checkpoint(time.perf_counter() - self._saving_since)
        elif path.name == RESULT:
            self._trackers.finished(read_result(path.parent) or {})
        self._host.saved(path)

    def wish(self) -> Wish:
        return self._host.wish()
