"""Who holds a group of workers up, by a clock that the test turns."""

from dataclasses import replace

import pytest

from optimag_dist.train.placement import Cluster
from optimag_dist.train.stalls import Heartbeat, StallDetector, StallReport

START, STALL = 100.0, 20.0


class Group:
    """Ranks that tell a detector of themselves, second by second."""

    def __init__(self, size: int, *, wait_for_places: bool = False) -> None:
        self.now = 0.0
        self.detector = StallDetector(size, START, STALL, wait_for_places, clock=lambda: self.now)
        self.beats: dict[int, Heartbeat] = {}
        self.silent: set[int] = set()

    def put(self, rank: int, phase: str, epoch: int, step: int, **changes: object) -> None:
        count = self.beats[rank].count + 10 if rank in self.beats else 10
        beat = Heartbeat(rank, f"host{rank}", f"node{rank}", 100 + rank, 1, "plain seed 0", phase, epoch, step, count)
        self.beats[rank] = replace(beat, **changes)  # type: ignore[arg-type]

    def report_after(self, seconds: int) -> StallReport | None:
        for _ in range(seconds):
            self.now += 1
            for rank, beat in self.beats.items():
                if rank not in self.silent:
                    self.detector.hear(beat)
            report = self.detector.report()
            if report is not None:
                return report
        return None


@pytest.fixture
def group() -> Group:
    made = Group(3)
    for rank in range(3):
        made.put(rank, "step", 2, 5)
    assert made.report_after(3) is None
    return made


@pytest.mark.parametrize(
    ("healthy", "stuck"),
    [
        (("step", 2, 6), ("load", 2, 6)),
        (("load", 2, 7), ("step", 2, 6)),
        (("evaluate", 3, 4), ("evaluate", 3, 1)),
        (("evaluate", 3, 0), ("step", 2, 9)),
        (("load", 3, 0), ("save", 3, 0)),
        (("save", 3, 0), ("evaluate", 3, 7)),
        (("export", 6, 1), ("test", 6, 30)),
        (("test", 6, 0), ("evaluate", 6, 9)),
    ],
)
def test_the_one_furthest_behind_is_named(healthy: tuple, stuck: tuple, group: Group) -> None:
    for rank in range(3):
        group.put(rank, *(stuck if rank == 1 else healthy))
    assert group.report_after(int(STALL)) is None
    report = group.report_after(2)
    assert report is not None
    assert [beat.rank for beat in report.stuck] == [1]
    assert not report.starting
    assert not report.silent
    said = str(report)
    assert "rank 1 (host host1, pid 101)" in said
    assert f"phase '{stuck[0]}', epoch {stuck[1]}, step {stuck[2]} of plain seed 0: stuck for 20 s" in said


def test_an_earlier_fit_is_behind_whatever_its_epoch(group: Group) -> None:
    group.put(0, "load", 0, 0, fit=2)
    group.put(1, "export", 50, 3, fit=1)
    group.put(2, "load", 0, 0, fit=2)
    report = group.report_after(30)
    assert report is not None
    assert [beat.rank for beat in report.stuck] == [1]


def test_silence_counts_more_than_place(group: Group) -> None:
    """A stopped process may have answered its peers' last question and lie ahead of those that wait for the next."""
    group.put(0, "load", 2, 6)
    group.put(1, "step", 2, 6)
    group.put(2, "load", 2, 6)
    group.report_after(1)
    group.silent = {1}
    report = group.report_after(30)
    assert report is not None
    assert [beat.rank for beat in report.stuck] == [1]
    assert "no sign of life" in str(report)


def test_all_at_one_place_are_all_named(group: Group) -> None:
    report = group.report_after(30)
    assert report is not None
    assert [beat.rank for beat in report.stuck] == [0, 1, 2]


def test_whoever_moves_keeps_the_group_alive(group: Group) -> None:
    for step in range(6, 16):
        group.put(1, "step", 2, step)
        assert group.report_after(int(STALL) - 2) is None


def test_nothing_is_expected_of_those_that_are_done(group: Group) -> None:
    for rank in range(3):
        group.put(rank, "done", 0, 0)
    assert group.report_after(200) is None
    # One alone is not.
    group.put(2, "export", 5, 0)
    report = group.report_after(30)
    assert report is not None
    assert [beat.rank for beat in report.stuck] == [2]


def test_start_has_a_time_out_of_its_own() -> None:
    group = Group(3)
    group.put(0, "step", 0, 0, count=3)
    group.put(1, "open", 0, 0, count=1)
    # A first step may compile for longer than a step may stall.
    assert group.report_after(int(START) - 1) is None
    report = group.report_after(2)
    assert report is not None
    assert report.starting
    assert [beat.rank for beat in report.stuck] == [0, 1]
    assert report.missing == (2,)
    assert "rank 2 of the workers: not started within 100 s" in str(report)


def test_silence_at_the_start_is_no_start() -> None:
    """Stopped before it told of its first steps: the time-out to start is not waited for."""
    group = Group(2)
    group.put(0, "step", 0, 1)
    group.put(1, "open", 0, 0, count=1)
    group.report_after(2)
    group.silent = {1}
    report = group.report_after(int(STALL) + 1)
    assert report is not None
    assert [beat.rank for beat in report.stuck] == [1]
    assert not report.starting


def test_where_nobody_comes_ray_is_waited_for_first() -> None:
    group = Group(2)
    assert group.report_after(2 * int(START)) is None
    report = group.report_after(100)
    assert report is not None
    assert report.missing == (0, 1)


def test_a_group_may_wait_for_places_as_long_as_it_takes() -> None:
    group = Group(2, wait_for_places=True)
    assert group.report_after(9 * int(START)) is None


def test_the_time_to_start_counts_from_when_there_is_something_to_do() -> None:
    group = Group(1)
    group.put(0, "done", 0, 0, count=2)
    assert group.report_after(2 * int(START)) is None
    group.put(0, "open", 0, 0, count=3)
    assert group.report_after(int(START) - 1) is None
    assert group.report_after(2) is not None


def test_a_new_life_starts_anew(group: Group) -> None:
    assert group.report_after(int(STALL) - 5) is None
    group.detector.restart()
    group.beats.clear()
    assert group.report_after(int(START) - 1) is None
    for rank in range(3):
        group.put(rank, "load", 2, 0)
    assert group.report_after(int(STALL)) is None
    assert group.report_after(2) is not None


def test_bundles_fit_whole_nodes_of_those_there_or_to_come() -> None:
    two_small = Cluster([{"CPU": 2}, {"CPU": 2}])
    assert two_small.fits({"CPU": 1}, 3) == 3
    # Four CPUs in all, but three on no node.
    assert two_small.fits({"CPU": 3}, 1) == 0
    assert two_small.fits({"CPU": 2, "GPU": 1}, 1) == 0
    grows = Cluster([{"memory": 1e9}], {"small": ({"CPU": 4}, 2), "gpu": ({"CPU": 8, "GPU": 1}, 1)})
    assert grows.fits({"CPU": 2}, 9) == 8
    assert grows.fits({"CPU": 2, "GPU": 1}, 2) == 1
    assert str(grows) == (
        "nodes: 1 × {}; its autoscaler may add up to 2 × small {CPU: 4}, up to 1 × gpu {CPU: 8, GPU: 1}"
    )
    assert Cluster([], boundless=True).fits({"CPU": 512}, 3) == 3


@pytest.mark.parametrize(
    ("size", "count", "boundless", "placed"),
    [(2, 9, False, 1), (1, 9, False, 3), (1, 2, False, 2), (4, 9, False, 1), (1, 9, True, 9), (1, 99, True, 19)],
)
def test_as_many_groups_are_asked_for_as_find_a_place(size: int, count: int, boundless: bool, placed: int) -> None:
    three = Cluster([{"memory": 1e9}], {"small": ({"CPU": 1}, 3)}, boundless)
    assert three.groups({"CPU": 1}, size, count) == placed
