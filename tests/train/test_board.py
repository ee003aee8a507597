"""The fits that a group's ranks are given, without any Ray."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from optimag_dist.train.board import Board, Event
from optimag_dist.train.stalls import Heartbeat


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_every_rank_gets_the_same_fits_whatever_happens_between_their_questions() -> None:
    async def told() -> None:
        board = Board()
        assert await board.submit(["a", "b"]) == [0, 1]
        assert await board.next("life", 0) == (0, "a")
        await board.stop()
        assert await board.submit(["c"]) == [2]
        # The second rank asks after the stop; the fit that neither has begun is left out for both.
        assert await board.next("life", 0) == (0, "a")
        await board.to_stop(0)
        assert [await board.next("life", 1) for _ in range(2)] == [(2, "c")] * 2
        await board.close()
        assert [await board.next("life", 2) for _ in range(2)] == [None, None]

    run(told())


def test_a_new_life_goes_through_what_has_not_ended() -> None:
    async def told() -> None:
        board = Board()
        await board.submit(["a", "b", "c"])
        assert await board.next("first", 0) == (0, "a")
        await board.tell(Event("result", 0, {"of": "a"}))
        assert await board.next("first", 1) == (1, "b")
        await board.beat("first", _heartbeat(0))
        assert await board.next("second", 0) == (1, "b")
        # What is left of the first is told of neither fits nor stalls.
        assert await board.next("first", 2) is None
        await board.beat("first", _heartbeat(1))
        assert await board.heartbeats() == (2, [])
        assert await board.next("second", 1) == (2, "c")

    run(told())


def test_results_are_told_once_and_whoever_waits_hears_at_once() -> None:
    async def told() -> None:
        board = Board()
        waiting = asyncio.create_task(board.read(10))
        asked = asyncio.create_task(board.next("life", 0))
        await asyncio.sleep(0)
        await board.submit(["a"])
        assert await asked == (0, "a")
        assert not await board.idle(0)
        for _ in range(2):
            await board.tell(Event("result", 0, {}))
        assert await waiting == [Event("result", 0, {})]
        assert await board.read(0) == []
        assert await board.idle(0)
        # Of a fit that has ended nobody waits for the order to stop.
        await board.to_stop(0)

    run(told())


def test_after_a_refusal_nobody_is_given_a_fit() -> None:
    async def told() -> None:
        board = Board()
        await board.submit(["a", "b"])
        assert await board.next("life", 0) == (0, "a")
        await board.tell(Event("refused", 0, ValueError()))
        assert await board.next("life", 1) is None
        assert await board.next("again", 0) is None

    run(told())


def _heartbeat(rank: int) -> Heartbeat:
    return Heartbeat(rank, "host", "node", 1, 0, "a", "step", 0, 0, 1)


def test_a_board_does_not_wait_for_longer_than_it_is_asked_to() -> None:
    async def told() -> None:
        assert await Board().read(0.01) == []

    run(told())
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(Board().next("life", 0), 0.05))
