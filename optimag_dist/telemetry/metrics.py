"""Ray's metrics of fits and of PPR runs, served by every node's metrics port for Prometheus.

Ray puts ``ray_`` before the names. A process has each metric once; its tags tell fits apart.
"""

import functools
import threading
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

_FIT = ("run", "variant", "seed")
# Ray drops a gauge that was not set for two of its reports, which come every ten seconds; epochs may be longer.
_REFRESH_S = 5.0
# Seconds of an epoch, and of a checkpoint.
_EPOCH_BOUNDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
_CHECKPOINT_BOUNDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]

# Key of the epoch's record → metric, description.
_FROM_RECORD = {
    "loss": ("optimag_loss", "training loss, task and regulariser, of the last epoch"),
    "task_loss": ("optimag_task_loss", "training loss of the task alone"),
    "alignment": ("optimag_alignment_loss", "the regulariser's part of the loss"),
    "kept_ppr": ("optimag_kept_ppr", "share of the seeds' PPR mass inside their group"),
    "targets_per_s": ("optimag_targets_per_second", "targets trained on, all ranks"),
    "seeds_per_s": ("optimag_seeds_per_second", "seeds of transport problems solved, all ranks"),
    "wait_s": ("optimag_loader_wait_seconds", "seconds of the last epoch in which a rank waited for its loader"),
}


class FitMetrics:
    """The metrics of one fit; its gauges show the last epoch, and go some seconds after :meth:`close`."""

    def __init__(self, run: str, variant: str, seed: int) -> None:
        self._tags = dict(zip(_FIT, (run, variant, str(seed)), strict=True))
        self._shown: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Gauge, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._refresh, daemon=True).start()

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch's record, as in ``metrics.jsonl``."""
        self._set("optimag_epoch", "epochs trained", record["epoch"] + 1)
        for key, (name, description) in _FROM_RECORD.items():
            if key in record:
                self._set(name, description, record[key])
        if "ufgw_s" in record:
            spent = "spent in transport problems, forward"
            share = record["ufgw_s"] / record["seconds"]
            self._set("optimag_ufgw_share", f"share of the epoch's seconds {spent}", share)
            milliseconds = 1000 * record["ufgw_s"] / record["steps"]
            self._set("optimag_ufgw_step_milliseconds", f"milliseconds of a step {spent}", milliseconds)
        for key, value in record.items():
            kind, _, name = key.partition("/")
            if kind == "val":
                self._set("optimag_validation", "metric of the validation nodes", value, metric=name)
            elif kind == "kept_mass":
                self._set("optimag_kept_mass", "mean kept mass of the epoch's seeds", value, modality=name)
        seconds = _histogram("optimag_epoch_seconds", "seconds of training epochs", *_EPOCH_BOUNDS)
        seconds.observe(record["seconds"], self._tags)

    def checkpoint(self, seconds: float) -> None:
        """A checkpoint took ``seconds`` to write."""
        name, description = "optimag_checkpoint_seconds", "seconds to write a checkpoint"
        _histogram(name, description, *_CHECKPOINT_BOUNDS).observe(seconds, self._tags)

    def close(self) -> None:
        """The fit has ended."""
        self._ended.set()

    def _set(self, name: str, description: str, value: float, **more: str) -> None:
        tags = self._tags | more
        gauge = _gauge(name, description, tuple(tags))
        gauge.set(float(value), tags)
        with self._lock:
            self._shown[name, tuple(tags.items())] = gauge, float(value)

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESH_S):
            with self._lock:
                for (_, tags), (gauge, value) in self._shown.items():
                    gauge.set(value, dict(tags))


def count_ppr_block(nodes: int, pushes: int, rows_fetched: int, bytes_fetched: int) -> None:
    """A block of ``nodes`` is finished; every push reads one adjacency row, of its cache if not fetched."""
    for name, description, count in (
        ("optimag_ppr_nodes", "nodes whose PPR row is finished", nodes),
        ("optimag_ppr_pushes", "pushes; each reads one adjacency row", pushes),
        ("optimag_ppr_rows_fetched", "adjacency rows fetched from other processes", rows_fetched),
        ("optimag_ppr_fetched_bytes", "bytes of adjacency rows fetched", bytes_fetched),
    ):
        if count:
            _counter(name, description).inc(count)


@functools.cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(name, description, tags)


@functools.cache
def _histogram(name: str, description: str, *boundaries: float) -> Histogram:
    return Histogram(name, description, list(boundaries), _FIT)


@functools.cache
def _counter(name: str, description: str) -> Counter:
    return Counter(name, description)
