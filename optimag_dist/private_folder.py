"""Temporary folders on a host that others share: nobody else may enter them, and none outlives its process for long."""

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from optimag_dist.messages import said_by_system
from optimag_dist.types import InputError

_PREFIX = "optimag-"
_MADE_LENGTH = len(f"/{_PREFIX}12345678")
# Of a socket's path, on Linux.
_SOCKET_BYTES = 107
# Others may still be writing as they end.
_TRIES, _PAUSE_S = 10, 0.2


def private_folder(below: int) -> Path:
    """Make a folder that this user alone may enter, which is removed when this process ends.

    What processes left behind that were killed is removed first. It lies in ``RAY_TMPDIR`` where that is set, otherwise
    in the system's temporary folder (``TMPDIR``), or in ``/tmp`` or ``/var/tmp`` where that has too long a path.
    ``below`` are the bytes of the longest path, with its leading slash, that a socket will have within the folder.
    ``InputError``: there is no such place, or its path is too long.
    """
    asked = os.environ.get("RAY_TMPDIR")
    problems = []
    for place in [asked] if asked else dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):
        longest = _SOCKET_BYTES - _MADE_LENGTH - below
        if len(os.fsencode(place)) > longest:
            problems.append(f"{place} has {len(os.fsencode(place))} letters, Ray's sockets leave room for {longest}")
            continue
        _remove_what_is_left(Path(place))
        try:
            return _make(place)
        except OSError as error:
            problems.append(said_by_system(error))
    what = "RAY_TMPDIR" if asked else "no temporary folder fits"
    raise InputError(f"{what}: {'; '.join(problems)}; set RAY_TMPDIR to a short path of a folder that you may write to")


def _make(place: str) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        # Held until this process ends, however it ends.
        if _lock(folder) is not None:
            break
    atexit.register(_remove, folder, os.getpid())
    return folder


def _lock(folder: Path) -> int | None:
    """A descriptor that holds ``folder``'s lock; None where another process has it, or has removed the folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.lstat(folder)):
                return descriptor
        os.close(descriptor)
    return None


def _remove_what_is_left(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}????????"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
                continue
            descriptor = _lock(folder)
            if descriptor is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() != owner:
        return  # forked from it
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_PAUSE_S)
