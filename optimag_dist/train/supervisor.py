"""Replaces workers that are stuck: has a detector look at their heartbeats, and kills the one that is to blame."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from optimag_dist.train.stalls import Heartbeat, StallDetector
from optimag_dist.types import RunError

_POLL_S = 0.5
_KILL_S = 30


class Supervisor:
    """Watches one group of workers, on a thread, from :meth:`start` to :meth:`stop`.

    Args:
        give_up: is called with the error that ends the run where placed workers do not begin to train. A worker that is
            killed is no such error: who started it starts it again.
    """

    def __init__(
        self, board: Any, detector: StallDetector, say: Callable[[str], None], give_up: Callable[[Exception], None]
    ) -> None:
        self._board, self._detector, self._say, self._give_up = board, detector, say, give_up
        self._life = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        # Of the workers' present life.
        self.last_words = ""
        self.heard: dict[int, Heartbeat] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=_KILL_S)

    def kill_workers(self) -> None:
        _kill(self.heard.values())

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                life, heartbeats = ray.get(self._board.heartbeats.remote(), timeout=5)
            except ray.exceptions.GetTimeoutError:
                continue
            except Exception:
                # The session is going down, with or without an error of its own: the driver's main thread tells.
                return
            if life != self._life:
                self._life, self.last_words, self.heard = life, "", {}
                self._detector.restart()
            for heartbeat in heartbeats:
                self.heard[heartbeat.rank] = heartbeat
                self._detector.hear(heartbeat)
            if not self._act():
                return

    def _act(self) -> bool:
        report = self._detector.report()
        if report is None:
            return True
        if report.starting:
            self._give_up(RunError(f"{report}; raise workers.start_timeout_s, or go on with --resume"))
            return False
        self.last_words = str(report)
        self._say(f"{report}; killing it, so that it is started again from the last checkpoint")
        for heartbeat in report.stuck:
            if heartbeat.stack:
                self._say(f"rank {heartbeat.rank} was at:\n{heartbeat.stack}")
        _kill(report.stuck)
        # Its death is noticed by who started it, and a new life begins; until then nobody else is to blame.
        self._detector.restart()
        return True


def _kill(workers: Iterable[Heartbeat]) -> None:
    """End the workers' processes, whatever state they are in; from any node."""
    killing = []
    for worker in workers:
        affinity = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
        task = ray.remote(_kill_process).options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)
        killing.append(task.remote(worker.pid))
    if killing:
        # A node that is out of reach takes its workers with it.
        ray.wait(killing, num_returns=len(killing), timeout=_KILL_S)


def _kill_process(pid: int) -> None:
    """SIGKILL to a Ray worker of this node, which ends one that is stopped or holds the interpreter's lock too."""
    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
        os.kill(pid, signal.SIGKILL)
