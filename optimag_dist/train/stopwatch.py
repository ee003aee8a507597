"""Time spent in a part of a step, without making the step wait for the device."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds that blocks take: wall-clock on the CPU, between CUDA events on a GPU."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        """Count the block, whose work is done on ``device``."""
        if device.type != "cuda":
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._running.append((begin, end))
        # Those that have ended are added up here, or an epoch would hold two events per group.
        while self._running and self._running[0][1].query():
            self._add(*self._running.popleft())

    def take(self) -> float:
        """Seconds since the last call; waits for the blocks that still run on a GPU."""
        while self._running:
            begin, end = self._running.popleft()
            end.synchronize()
            self._add(begin, end)
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _add(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> None:
        self._seconds += begin.elapsed_time(end) / 1000
