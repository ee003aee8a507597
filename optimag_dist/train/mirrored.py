"""A fit whose directory lies elsewhere: worked on in this host's cache, each file sent as soon as it is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimag_dist.storage import AnyPath, Mirror
from optimag_dist.train.fit import Fit
from optimag_dist.train.host import Host, Wish


@contextmanager
def mirrored(fit: Fit, place: AnyPath, rank: int, host: Host) -> Iterator[tuple[Fit, Host]]:
    """``fit`` and ``host`` as :func:`~optimag_dist.train.fit.run_fit` takes them, for a fit that is kept at ``place``.

    Every rank begins with what is there, so that a fit goes on from its last checkpoint on any host. Files are sent in
    the order in which they are written, behind training's back; all have arrived when the block ends. A crash leaves
    what was sent before it.

    Raises:
        InputError: ``place`` cannot be read or written to.
    """
    if isinstance(place, Path):
        yield fit, host
        return
    with Mirror(place, f"rank {rank}") as mirror:
        mirror.fetch()
        yield replace(fit, directory=mirror.path), _Sending(host, mirror)
        if rank == 0:
            mirror.publish_all()


class _Sending(Host):
    def __init__(self, host: Host, mirror: Mirror) -> None:
        self._host, self._mirror = host, mirror

    def beat(self, phase: str, epoch: int, step: int) -> None:
        self._host.beat(phase, epoch, step)

    def epoch(self, record: dict[str, Any]) -> None:
        self._host.epoch(record)

    def saved(self, path: Path) -> None:
        self._mirror.publish(path)
        self._host.saved(path)

    def wish(self) -> Wish:
        return self._host.wish()
