"""What a training step says of itself: a typed record, whose numbers add up over ranks and steps; and its time."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = Tensor | float
# Field of StepMetrics → the names of its numbers in checkpoints; of a mapping they end in its keys.
_NAMES = {
    "task_loss": "task_loss",
    "alignment": "alignment",
    "task_losses": "task_loss/",
    "kept_mass": "kept/",
    "nodes": "nodes/",
    "signs": "sign/",
}


@dataclass(frozen=True)
class StepMetrics:
    """A rank's share of a step's metrics: scalars without gradient.

    Attributes:
        task_loss: weighted sum of the tasks' losses; a mean over the step, as the following two.
        alignment: value of the regulariser.
        task_losses: task → its loss, before weights; empty where there is one task.
        kept_mass: modality → kept mass, summed over the groups' nodes that have the modality.
        nodes: modality → how many these are.
        signs: sign of a useless plan → in what share of a group's modalities it was seen, summed over groups.
    """

    task_loss: Number = 0.0
    alignment: Number = 0.0
    task_losses: Mapping[str, Number] = field(default_factory=dict)
    kept_mass: Mapping[str, Number] = field(default_factory=dict)
    nodes: Mapping[str, Number] = field(default_factory=dict)
    signs: Mapping[str, Number] = field(default_factory=dict)

    def named(self) -> dict[str, Number]:
        """All numbers by the names they have in checkpoints."""
        numbers: dict[str, Number] = {}
        for each in fields(self):
            value, name = getattr(self, each.name), _NAMES[each.name]
            numbers |= {name + key: v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
        return numbers

    @classmethod
    def from_named(cls, numbers: Mapping[str, Number]) -> "StepMetrics":
        """The inverse of :meth:`named`; names that are not of these metrics are left out."""
        found: dict[str, Number | dict[str, Number]] = {}
        for each, name in _NAMES.items():
            if name in numbers:
                found[each] = numbers[name]
            elif name.endswith("/"):
                found[each] = {k.removeprefix(name): v for k, v in numbers.items() if k.startswith(name)}
        return cls(**found)  # type: ignore[arg-type]

    def __add__(self, other: "StepMetrics") -> "StepMetrics":
        mine, theirs = self.named(), other.named()
        return StepMetrics.from_named({k: mine.get(k, 0.0) + theirs.get(k, 0.0) for k in {**mine, **theirs}})

    def double(self) -> "StepMetrics":
        return StepMetrics.from_named({k: v.double() if isinstance(v, Tensor) else v for k, v in self.named().items()})


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
