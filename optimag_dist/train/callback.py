"""What surrounds a fit: callbacks that are told how it goes, and may ask it to save or to stop, all ranks alike."""

import enum
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class Signal(enum.IntEnum):
    """What a fit is asked to do; of several ranks' signals the greatest counts."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class TrainerCallback:
    """Called by a fit on every rank; this one does nothing, which is what a fit outside of Ray has.

    All calls must return at once: they are made between steps.
    """

    def on_phase(self, phase: str, epoch: int, step: int) -> None:
        """This rank enters ``phase``, one of :data:`~optimag_dist.train.stalls.PHASES`.

        ``load`` (waiting for a batch), ``step`` and ``save`` (a checkpoint from which the fit would go on at this very
        step) count an epoch's steps; ``evaluate`` (named by the epoch that follows), ``test`` and ``export`` count
        batches of their own.
        """

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        """An epoch has ended with the metrics ``record``, the same on every rank."""

    def on_save(self, path: Path) -> None:
        """``path``, a file of the fit, is written; told by the rank that wrote it."""

    def signal(self) -> Signal:
        """What this rank asks of the fit; asked after every step, and each answer counts once.

        The ranks agree on it, so any of them may ask; the fit complies one step later.
        """
        return Signal.GO_ON


class CallbackList(TrainerCallback):
    """Calls each of ``callbacks``, in their order; of their signals the greatest counts."""

    def __init__(self, callbacks: Sequence[TrainerCallback]) -> None:
        self._callbacks = callbacks

    def on_phase(self, phase: str, epoch: int, step: int) -> None:
        for callback in self._callbacks:
            callback.on_phase(phase, epoch, step)

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        for callback in self._callbacks:
            callback.on_epoch_end(record)

    def on_save(self, path: Path) -> None:
        for callback in self._callbacks:
            callback.on_save(path)

    def signal(self) -> Signal:
        return max((callback.signal() for callback in self._callbacks), default=Signal.GO_ON)


def beats(callback: TrainerCallback, phase: str, epoch: int) -> Callable[[], None]:
    """Tells ``callback``, each time it is called, that ``phase`` has got one further."""
    steps = itertools.count()
    return lambda: callback.on_phase(phase, epoch, next(steps))


class SignalReducer:
    """The greatest of all ranks' signals, known one step after it was asked for; use as a context manager.

    The exchange is a reduction of one integer that runs while the next step is computed, over a CPU group of its own,
    so that a GPU is not waited for. Every rank makes the same calls in the same order.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._signal = torch.zeros((), dtype=torch.int64)
        self._work: dist.Work | None = None

    def __enter__(self) -> "SignalReducer":
        self._group = dist.new_group(backend="gloo") if self._world_size > 1 else None
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # After an error the other ranks may never answer.
        if self._group is not None and error is None:
            self.reached()
            dist.destroy_process_group(self._group)

    def ask(self, signal: Signal) -> None:
        """Tell the other ranks of this rank's signal."""
        self._signal.fill_(signal)
        if self._group is not None:
            self._work = dist.all_reduce(self._signal, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def reached(self) -> Signal:
        """What was asked last, by any rank; each signal is told once."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        signal = Signal(int(self._signal))
        self._signal.zero_()
        return signal
