"""One process at a time works on a directory, wherever that lies."""

import contextlib
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from optimag_dist.files import sole_writer, this_process
from optimag_dist.storage import AnyPath, RemotePath, cache, digest, is_file, remove, to_write
from optimag_dist.types import InputError, RunError

# A remote lock is renewed so often; one that is not for so long has no owner any more.
_RENEW_S, _STALE_S = 5.0, 20.0
# Within this a storage shows what was written.
_SETTLE_S = 0.5


def wait_for(place: AnyPath, holder: str) -> None:
    print(f"{place}: {holder}, is at work on it; waiting for it to end", file=sys.stderr, flush=True)


@contextlib.contextmanager
def sole_user(place: AnyPath, busy: Callable[[AnyPath, str], None] = wait_for) -> Iterator[None]:
    """Hold the lock of a directory that one process at a time works on; a local one is made if missing.

    Of a local one it is the system's, which ends with the process. A remote one has a lock among the processes of this
    host, and for other hosts a file ``.NAME.lock`` beside it that is renewed while the work goes on; one that is not
    renewed was left by a process that was killed, and is taken over. Two hosts that begin within the same half second
    are told apart on every storage on which a file is seen as soon as it is written. ``busy`` is called with ``place``
    and who holds the lock; it raises to go away instead of waiting. ``InputError``: it cannot be written to;
    ``RunError``: this process was held up for so long that another one took its lock.
    """
    folder = place if isinstance(place, Path) else cache() / "locks" / digest(place.uri)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(sole_writer(folder, partial(busy, place)))
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written or locked: {error.strerror}; name a folder that you may write to"
            ) from error
        if isinstance(place, RemotePath):
            held.enter_context(_signed(place, partial(busy, place)))
        yield


@contextlib.contextmanager
def _signed(place: RemotePath, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock's file of a remote directory, see :func:`sole_user`."""
    file = place.parent / f".{place.name}.lock"
    who = f"{this_process()}\n{uuid.uuid4().hex}"
    while True:
        known = _content(file)
        # A clock that all hosts share there is not: what counts is whether it changes.
        while known is not None and _changed(file, known):
            known = _content(file)
            if known is not None:
                busy(known.partition("\n")[0])
        _write(file, who)
        time.sleep(_SETTLE_S)
        if _content(file) == who:
            break
    ended, lost = threading.Event(), threading.Event()

    def renew() -> None:
        beats = 0
        while not ended.wait(_RENEW_S):
            # What cannot be reached now may be a moment later.
            with contextlib.suppress(InputError):
                if not (_content(file) or who).startswith(who):
                    lost.set()
                    return
                beats += 1
                _write(file, f"{who} {beats}")

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(InputError):
            if (_content(file) or "").startswith(who):
                remove(file)
            else:
                lost.set()
    if lost.is_set():
        raise RunError(
            f"{place}: another process took this directory over while this one gave no sign of life for {_STALE_S:g} s;"
            f" what both have written may be mixed. Remove it, and run one of them again"
        )


def _content(file: RemotePath) -> str | None:
    return file.read().decode(errors="replace") if is_file(file) else None


def _changed(file: RemotePath, known: str) -> bool:
    """Whether ``file`` changes, or goes, within the time in which its owner renews it a few times."""
    end = time.monotonic() + _STALE_S
    while time.monotonic() < end:
        time.sleep(min(_RENEW_S, _SETTLE_S))
        if _content(file) != known:
            return True
    return False


def _write(file: RemotePath, text: str) -> None:
    with to_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
