"""What a fit on a Ray worker tells, and to whom: the group's board, a mirror of its directory, metrics and trackers."""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train

from optimag_dist.remote_copies import Mirror
from optimag_dist.telemetry import TrackingOptions
from optimag_dist.telemetry.metrics import FitMetrics
from optimag_dist.telemetry.trackers import Trackers
from optimag_dist.train.board import Event
from optimag_dist.train.callback import Signal, TrainerCallback
from optimag_dist.train.fit import Fit
from optimag_dist.train.log import RESULT, read_result
from optimag_dist.train.stalls import BEATS_PER_TIMEOUT, Heartbeat

# At least this often, however long a stall may last.
_INTERVAL_S = 2.0
_PREEMPTION_S = 2.0
_FRAMES = 6


class HeartbeatCallback(TrainerCallback):
    """Tells the board where this rank is. Asks the fit to save when its node leaves, to stop when the board says so.

    Made on the thread that trains, for one life of the group, the same on every rank; :meth:`begin` each fit. A second
    thread tells the board of the last place, a few times within ``stall_timeout_s``; training never waits for it.
    """

    def __init__(self, board: Any, life: str, rank: int, stall_timeout_s: float) -> None:
        self._board, self._life, self._rank = board, life, rank
        self._node_id = ray.get_runtime_context().get_node_id()
        self._interval_s = min(_INTERVAL_S, stall_timeout_s / BEATS_PER_TIMEOUT)
        self._stall_timeout_s = stall_timeout_s
        self._place = ("open", 0, 0)
        self._count = 0
        self._number = -1
        self._name = ""
        self._to_stop: ray.ObjectRef | None = None
        self._leaving = False
        threading.Thread(target=self._tell, args=(threading.get_ident(),), daemon=True).start()
        threading.Thread(target=self._watch_node, daemon=True).start()

    def begin(self, number: int, fit: Fit) -> None:
        self._number, self._name = number, f"{fit.variant} seed {fit.seed}"
        if self._rank == 0:
            self._to_stop = self._board.to_stop.remote(number)
        self.on_phase("open", 0, 0)

    def done(self) -> None:
        """Until the next fit begins nothing is expected to move."""
        self.on_phase("done", 0, 0)
        self._board.beat.remote(self._life, self._heartbeat(""))

    def on_phase(self, phase: str, epoch: int, step: int) -> None:
        self._place = (phase, epoch, step)
        self._count += 1

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        if self._rank == 0:
            self._board.tell.remote(Event("epoch", self._number, record))

    def signal(self) -> Signal:
        if self._to_stop is not None and ray.wait([self._to_stop], timeout=0)[0]:
            return Signal.STOP
        leaving, self._leaving = self._leaving, False
        return Signal.SAVE if leaving else Signal.GO_ON

    def _tell(self, training_thread: int) -> None:
        seen, unmoved_s = -1, 0.0
        while True:
            unmoved_s = 0.0 if self._count != seen else unmoved_s + self._interval_s
            seen = self._count
            stack = ""
            if unmoved_s > self._stall_timeout_s / 2:
                frame = sys._current_frames().get(training_thread)
                stack = "".join(traceback.format_stack(frame)[-_FRAMES:])
            self._board.beat.remote(self._life, self._heartbeat(stack))
            time.sleep(self._interval_s)

    def _watch_node(self) -> None:
        """Ray is told that a node is to be taken away (a spot instance, a drained host)."""
        # Each call waits for all ranks; that is why it has a thread of its own. The last one fails as the group ends.
        with contextlib.suppress(ray.exceptions.RayError):
            while ray.train.get_preemption_info() is None:
                time.sleep(_PREEMPTION_S)
            self._leaving = True

    def _heartbeat(self, stack: str) -> Heartbeat:
        host, pid = socket.gethostname(), os.getpid()
        return Heartbeat(
            self._rank, host, self._node_id, pid, self._number, self._name, *self._place, self._count, stack
        )


class MirrorCallback(TrainerCallback):
    """Sends each file of the fit to where its directory is kept, as soon as it is written."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def on_save(self, path: Path) -> None:
        self._mirror.publish(path)


class TelemetryCallback(TrainerCallback):
    """Tells Ray's metrics and experiment trackers of the fit."""

    def __init__(self, fit: Fit, metrics: FitMetrics, trackers: Trackers) -> None:
        self._metrics, self._trackers = metrics, trackers
        self._params = {"variant": fit.variant, "seed": fit.seed, **fit.config.model_dump(mode="json")}
        self._saving_since = 0.0

    def on_phase(self, phase: str, epoch: int, step: int) -> None:
        if phase == "save":
            self._saving_since = time.perf_counter()

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        self._metrics.epoch(record)
        self._trackers.epoch(record, self._params)

    def on_save(self, path: Path) -> None:
        if path.name == "checkpoint.pt":
            self._metrics.checkpoint(time.perf_counter() - self._saving_since)
        if path.name == RESULT:
            self._trackers.finished(read_result(path.parent) or {})


@contextlib.contextmanager
def telemetry(
    fit: Fit, rank: int, *, run: str, tracking: TrackingOptions, say: Callable[[str], None] = print
) -> Iterator[list[TrainerCallback]]:
    """Callbacks for metrics and trackers, of rank 0; at the end, waits a bounded time for the trackers. ``say`` is
    called, from a thread, with a line for people when a tracker fails."""
    if rank > 0:
        yield []
        return
    metrics = FitMetrics(run, fit.variant, fit.seed)
    trackers = Trackers(tracking, group=run, name=f"{fit.variant} seed {fit.seed}", directory=fit.directory, say=say)
    try:
        yield [TelemetryCallback(fit, metrics, trackers)]
    finally:
        metrics.close()
        trackers.close()
