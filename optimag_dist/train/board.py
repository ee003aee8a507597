"""Where the driver of a worker group and its workers meet: an actor that hands out fits and gathers what is told.

It loads neither torch nor what fits are made of, which it holds by reference, so that it starts quickly.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from optimag_dist.train.stalls import Heartbeat


class Event(NamedTuple):
    """What the workers tell.

    Attributes:
        kind: ``epoch`` and ``result``: rank 0 tells an epoch's record, a fit's result; ``stopped``: it has stopped the
            fit as it was asked to; ``refused``: a rank tells an InputError; ``line``: something for people to read.
        fit: its number, in the order in which fits were submitted.
    """

    kind: Literal["epoch", "result", "stopped", "refused", "line"]
    fit: int
    content: Any = None


class Board:
    """Runs as an asynchronous Ray actor.

    Workers that are started again, a *life* of the group, go through the fits that have not ended yet. Within a life
    every rank gets the same ones in the same order: what the first rank to ask is given, the others are given too.
    """

    def __init__(self) -> None:
        self._fits: list[Any] = []
        self._ended: set[int] = set()
        self._stopped_below = 0
        self._closed = False
        self._lives: list[str] = []
        self._given: list[int] = []
        self._heartbeats: dict[int, Heartbeat] = {}
        self._events: list[Event] = []
        self._changed = asyncio.Condition()

    # -- the driver's side

    async def submit(self, fits: Sequence[Any]) -> list[int]:
        """Queue ``fits``, references to them; returns their numbers."""
        first = len(self._fits)
        self._fits += fits
        await self._tell_change()
        return list(range(first, len(self._fits)))

    async def stop(self) -> None:
        """Have all fits submitted so far saved and stopped; those that have not begun will not begin."""
        self._stopped_below = len(self._fits)
        await self._tell_change()

    async def close(self) -> None:
        """Let the workers leave when the fits submitted so far have ended."""
        self._closed = True
        await self._tell_change()

    async def read(self, patience_s: float) -> list[Event]:
        """The events since the last call; waits at most ``patience_s`` for one."""
        await self._wait_until(lambda: bool(self._events), patience_s)
        events, self._events = self._events, []
        return events

    async def idle(self, patience_s: float) -> bool:
        """Whether no worker is at a fit; waits at most ``patience_s`` until it is so."""
        return await self._wait_until(lambda: self._ended.issuperset(self._given), patience_s)

    async def heartbeats(self) -> tuple[int, list[Heartbeat]]:
        """How often the workers were started, and what was heard of them since the last call."""
        heard, self._heartbeats = list(self._heartbeats.values()), {}
        return len(self._lives), heard

    # -- the workers' side

    async def next(self, life: str, position: int) -> tuple[int, Any] | None:
        """Number of and reference to the fit that is the ``position``-th of ``life``; waits for it.

        None where there are no more, or another life has begun since.
        """

        def known() -> bool:
            return not self._enter(life) or len(self._given) > position or self._closed or self._waiting() is not None

        await self._wait_until(known, None)
        if not self._enter(life):
            return None
        if len(self._given) == position:
            number = self._waiting()
            if number is None:
                return None
            self._given.append(number)
        return self._given[position], self._fits[self._given[position]]

    async def to_stop(self, number: int) -> None:
        """Returns when the fit is to stop, or has ended."""
        await self._wait_until(lambda: number < self._stopped_below or number in self._ended, None)

    async def tell(self, event: Event) -> None:
        if event.kind in ("result", "stopped"):
            if event.fit in self._ended:
                return
            self._ended.add(event.fit)
        if event.kind == "refused":
            # Whoever is started again would refuse it again.
            self._closed, self._stopped_below = True, len(self._fits)
        self._events.append(event)
        await self._tell_change()

    async def beat(self, life: str, heartbeat: Heartbeat) -> None:
        if self._enter(life):
            self._heartbeats[heartbeat.rank] = heartbeat

    def _enter(self, life: str) -> bool:
        """Whether ``life`` is the present one, which one that was not heard of before becomes."""
        if life not in self._lives:
            self._lives.append(life)
            self._given, self._heartbeats = [], {}
        return life == self._lives[-1]

    def _waiting(self) -> int | None:
        taken = self._ended.union(self._given)
        return next((n for n in range(self._stopped_below, len(self._fits)) if n not in taken), None)

    async def _tell_change(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_until(self, condition: Callable[[], bool], patience_s: float | None) -> bool:
        async with self._changed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(condition), patience_s)
        return condition()
