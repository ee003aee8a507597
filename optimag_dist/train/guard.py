"""Replaces workers that are stuck: asks their board where they are, has a watch judge, and kills the one to blame."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from optimag_dist.train.watch import Beat, Watch
from optimag_dist.types import RunError

_POLL_S = 0.5
_KILL_S = 30


class Guard:
    """Guards one group of workers until the ``with`` block ends.

    Args:
        board: where the workers tell of themselves, a Ray actor like
            :class:`~optimag_dist.train.progress.ProgressBoard`.
        watch: judges them.
        say: prints a line for the user.
        give_up: is called with the error that ends the run, if there is one: placed workers do not begin to train, or
            one of them refuses its input. A worker that is killed is no such error: who started it starts it again.
    """

    def __init__(
        self, board: Any, watch: Watch, say: Callable[[str], None], give_up: Callable[[Exception], None]
    ) -> None:
        self._board, self._watch, self._say, self._give_up = board, watch, say, give_up
        self._life = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guard, daemon=True)
        # About the workers' present life.
        self.last_words = ""

    def __enter__(self) -> "Guard":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=_KILL_S)

    def _guard(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                life, beats, refusal = ray.get(self._board.signs.remote(), timeout=5)
            except ray.exceptions.GetTimeoutError:
                continue
            except Exception:
                # The session is going down, with or without an error of its own: the driver's main thread tells.
                return
            if refusal is not None:
                self._give_up(refusal)
                return
            if life != self._life:
                self._life, self.last_words = life, ""
                self._watch.restart()
            for beat in beats:
                self._watch.hear(beat)
            if not self._judge():
                return

    def _judge(self) -> bool:
        verdict = self._watch.verdict()
        if verdict is None:
            return True
        if verdict.starting:
            self._give_up(RunError(f"{verdict}; raise train.start_timeout_s, or go on with --resume"))
            return False
        self.last_words = str(verdict)
        self._say(f"{verdict}; killing it, so that it is started again from the last checkpoint")
        for beat in verdict.stuck:
            if beat.stack:
                self._say(f"rank {beat.rank} was at:\n{beat.stack}")
            kill_worker(beat)
        # Its death is noticed by who started it, and a new life begins; until then nobody else is to blame.
        self._watch.restart()
        return True


def kill_worker(beat: Beat) -> None:
    """End the worker's process, whatever state it is in; from any node."""
    affinity = NodeAffinitySchedulingStrategy(beat.node_id, soft=False)
    task = ray.remote(_kill_process).options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)
    # A node that is out of reach takes its workers with it.
    ray.wait([task.remote(beat.pid)], timeout=_KILL_S)


def _kill_process(pid: int) -> None:
    """SIGKILL to a Ray worker of this node, which ends one that is stopped or holds the interpreter's lock too."""
    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
        os.kill(pid, signal.SIGKILL)
