"""How ranks agree on what is signalled, without waiting for each other at every step."""

from types import TracebackType

import torch
import torch.distributed as dist

from optimag_dist.train.callback import Signal


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
