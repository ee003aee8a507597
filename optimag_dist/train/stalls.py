"""Who holds a group of workers up, decided from their heartbeats. Knows neither Ray nor torch."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# In the order in which a fit passes through them between two positions (epoch, step): TrainerCallback.on_phase.
PHASES = ("open", "evaluate", "save", "load", "step", "test", "export", "done")
# A worker's first step compiles and connects, so it counts as start: opening the fit, loading and step come before.
_STARTED = 4
# What Ray Train takes to start its own actors and to give up several times, beside the time-out it is given.
_RAY_S = 60.0
# A worker that is alive tells of itself this many times within the time-out, whether or not it has moved.
BEATS_PER_TIMEOUT = 5


@dataclass(frozen=True)
class Heartbeat:
    """What a worker tells of itself every few seconds.

    Attributes:
        rank, host, node_id, pid: which worker, and where its process runs; ``node_id`` is Ray's.
        fit, name: its number, by which fits follow one another, and what it is called.
        phase, epoch, step: where it is, see :meth:`TrainerCallback.on_phase`; phase ``done`` between fits.
        count: of its beats so far; it has moved when this has.
        stack: the last frames of its training thread, if it has not moved for long.
    """

    rank: int
    host: str
    node_id: str
    pid: int
    fit: int
    name: str
    phase: str
    epoch: int
    step: int
    count: int
    stack: str = ""

    def __str__(self) -> str:
        return (
            f"rank {self.rank} (host {self.host}, pid {self.pid}) in phase {self.phase!r}, epoch {self.epoch}, "
            f"step {self.step} of {self.name}"
        )


@dataclass(frozen=True)
class StallReport:
    """Workers that have not come (``missing`` ranks), or that hold the others up (``stuck``, which may be ``silent``);
    ``starting`` where the group had not begun to train as a whole."""

    starting: bool
    stuck: tuple[Heartbeat, ...]
    missing: tuple[int, ...]
    silent: bool
    seconds: float

    def __str__(self) -> str:
        what = "not ready to train" if self.starting else "stuck"
        how = ", with no sign of life" if self.silent else ""
        lines = [f"{beat}: {what} for {self.seconds:.0f} s{how}" for beat in self.stuck]
        if self.missing:
            ranks = ", ".join(map(str, self.missing))
            lines.append(f"rank {ranks} of the workers: not started within {self.seconds:.0f} s")
        return "; ".join(lines)


class StallDetector:
    """Tells who holds one group of workers up.

    Ranks move in lockstep: all but the one that is stuck get as far as its next collective and wait there. So nobody
    moves soon, and the one to blame is the one furthest behind, or one that has fallen silent.

    Args:
        start_timeout_s: until every rank has begun to train.
        stall_timeout_s: without progress of any rank from then on.
        wait_for_places: where no rank was heard of, the group may still wait for a place in the cluster, and does so
            for as long as it takes.
    """

    def __init__(
        self,
        world_size: int,
        start_timeout_s: float,
        stall_timeout_s: float,
        wait_for_places: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._world_size = world_size
        self._start_timeout_s, self._stall_timeout_s = start_timeout_s, stall_timeout_s
        self._wait_for_places, self._clock = wait_for_places, clock
        self.restart()

    def restart(self) -> None:
        """The workers are started anew: those before are forgotten, and the time to start counts from here."""
        self._since = self._clock()
        self._beats: dict[int, Heartbeat] = {}
        self._heard: dict[int, float] = {}
        self._moved = self._since

    def hear(self, beat: Heartbeat) -> None:
        before = self._beats.get(beat.rank)
        if before is None or (before.pid, before.node_id, before.count) != (beat.pid, beat.node_id, beat.count):
            self._moved = self._clock()
        if before is not None and before.phase == "done" != beat.phase:
            self._since = self._clock()
        self._beats[beat.rank] = beat
        self._heard[beat.rank] = self._clock()

    def report(self) -> StallReport | None:
        """Who is to blame, once a time-out has passed; None before."""
        now = self._clock()
        active = [beat for beat in self._beats.values() if beat.phase != "done"]
        # Whatever a worker is at, compiling included, its other thread tells of it.
        gone = tuple(beat for beat in active if now - self._heard[beat.rank] >= self._stall_timeout_s)
        if gone:
            return StallReport(False, gone, (), True, now - min(self._heard[beat.rank] for beat in gone))
        late = [beat for beat in active if beat.count < _STARTED]
        missing = tuple(rank for rank in range(self._world_size) if rank not in self._beats)
        if late or missing:
            seconds = now - self._since
            patience_s = self._start_timeout_s
            if not self._beats:
                # Whoever places workers has a time-out of its own and can say what is missing: here is the last resort.
                patience_s = math.inf if self._wait_for_places else 2 * self._start_timeout_s + _RAY_S
            if seconds < patience_s:
                return None
            return StallReport(True, tuple(late), missing, False, seconds)
        seconds = now - self._moved
        if seconds < self._stall_timeout_s or not active:
            return None
        # Only the last to move sets the time; one that fell silent shortly after is as much to blame.
        silent = tuple(beat for beat in active if now - self._heard[beat.rank] > self._stall_timeout_s / 2)
        places = {beat.rank: (beat.fit, place(beat.phase, beat.epoch, beat.step)) for beat in active}
        behind = tuple(beat for beat in active if places[beat.rank] == min(places.values()))
        return StallReport(False, silent or behind, (), bool(silent), seconds)


def place(phase: str, epoch: int, step: int) -> tuple[int, ...]:
    """Sorts the beats of one fit in the order in which they are made."""
    # Phases between two epochs count batches of their own, not the epoch's steps.
    part = {"open": 0, "evaluate": 0, "test": 2, "export": 3}.get(phase, 1)
    return (epoch, part, step, PHASES.index(phase))
