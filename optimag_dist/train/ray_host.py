"""A fit's host on a Ray worker: tells a board in the driver where the fit is, and has it save when its node leaves."""

import os
import socket
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

import ray
from ray._private.state import state

from optimag_dist.train.fit import Fit
from optimag_dist.train.host import Host, Wish
from optimag_dist.train.watch import SIGNS_PER_TIMEOUT, Beat

# At least this often, however long a stall may last.
_INTERVAL_S = 2.0
_FRAMES = 6


class RayHost(Host):
    """Use as a context manager on the thread that trains; :meth:`begin` each fit.

    A second thread tells the board of every beat's place, a few times within ``stall_timeout_s``; training never waits
    for it.

    Args:
        board: a Ray actor like :class:`~optimag_dist.train.progress.ProgressBoard`.
        rank: this worker's.
        stall_timeout_s: see :class:`~optimag_dist.train.options.TrainOptions`.
    """

    def __init__(self, board: Any, rank: int, stall_timeout_s: float) -> None:
        self._board, self._rank = board, rank
        self._node_id = ray.get_runtime_context().get_node_id()
        self._interval_s = min(_INTERVAL_S, stall_timeout_s / SIGNS_PER_TIMEOUT)
        self._stall_timeout_s = stall_timeout_s
        self._place = ("open", 0, 0)
        self._count = self._num_fits = 0
        self._fit: Fit | None = None
        self._wish = Wish.GO_ON
        self._thread = threading.Thread(target=self._tell, args=(threading.get_ident(),), daemon=True)
        self._stop = threading.Event()

    def __enter__(self) -> "RayHost":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def begin(self, fit: Fit) -> None:
        """The fit that the following calls are about."""
        self._fit = fit
        self._num_fits += 1
        self.beat("open", 0, 0)

    def done(self) -> None:
        """There are no more fits; from here on nothing is expected to move."""
        self.beat("done", 0, 0)

    def beat(self, phase: str, epoch: int, step: int) -> None:
        self._place = (phase, epoch, step)
        self._count += 1

    def epoch(self, record: dict[str, Any]) -> None:
        if self._rank == 0 and self._fit is not None:
            self._board.epoch.remote(_name(self._fit), record, self._fit.config.train.epochs)

    def wish(self) -> Wish:
        wish, self._wish = self._wish, Wish.GO_ON
        return wish

    def _tell(self, training_thread: int) -> None:
        seen, unmoved_s, leaving = -1, 0.0, False
        while True:
            unmoved_s = 0.0 if self._count != seen else unmoved_s + self._interval_s
            seen = self._count
            stack = ""
            if unmoved_s > self._stall_timeout_s / 2:
                frame = sys._current_frames()[training_thread]
                stack = "".join(traceback.format_stack(frame)[-_FRAMES:])
            self._board.beat.remote(self._beat(stack))
            if not leaving and self._node_leaves():
                leaving = True
                self._wish = Wish.SAVE
            if self._stop.wait(self._interval_s):
                # Only what was told last counts.
                self._board.beat.remote(self._beat(""))
                return

    def _node_leaves(self) -> bool:
        """Whether Ray was told that this node is to be taken away (a spot instance, a drained host)."""
        try:
            return self._node_id in state.get_draining_nodes()
        except Exception:
            # The head may be away for a while; this worker is alive all the same, and goes on to say so.
            return False

    def _beat(self, stack: str) -> Beat:
        phase, epoch, step = self._place
        return Beat(
            rank=self._rank,
            host=socket.gethostname(),
            node_id=self._node_id,
            pid=os.getpid(),
            fit=self._num_fits,
            name="" if self._fit is None else _name(self._fit),
            phase=phase,
            epoch=epoch,
            step=step,
            count=self._count,
            stack=stack,
        )


def _name(fit: Fit) -> str:
    return f"{fit.variant} seed {fit.seed}"
