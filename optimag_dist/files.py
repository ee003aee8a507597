"""Files that are written whole or not at all."""

import errno
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

# In a directory that a process is at work on.
LOCK = ".lock"
# What the system says of a write without naming the file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Between two looks whether a lock is free.
_LOOK_S = 0.1


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; when the block ends well it takes the place of ``path``.

    A reader, a crash or a power cut sees the old file or the new one, never a part; when the block raises, the old one
    stays and the temporary one goes. Missing parent directories are made. ``OSError`` names ``path`` on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with writing(path):
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        # The new name itself has to reach the disk too.
        sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of a full disk within the block names ``path``; the system's own names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _FULL:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Have the disk hold what was written to the file or directory ``path``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(
    directory: Path, busy: Callable[[str], None] | None = None, patience_s: float | None = None
) -> Iterator[None]:
    """Hold ``directory``'s lock, waiting for it; the system releases it when the process ends, however it ends.

    The directory is made if missing. At the end the lock's file goes, and with it directories that were made and have
    nothing in them. ``busy`` is called with who holds the lock where somebody does; it raises to go away instead of
    waiting. After ``patience_s``, if given, a ``TimeoutError`` names who holds it.
    """
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    file = directory / LOCK
    descriptor = _locked(file, busy, patience_s)
    try:
        yield
    finally:
        # While it is still held: who waits for this very file sees that it is gone, and makes another. Where the whole
        # directory was replaced in the block, the file is somebody else's.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                file.unlink()
        os.close(descriptor)
        with suppress(OSError):
            for folder in made:
                if folder.exists():
                    folder.rmdir()


def this_process() -> str:
    """What tells people of this process, on any host."""
    return f"pid {os.getpid()} on host {socket.gethostname()}, since {datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _locked(file: Path, busy: Callable[[str], None] | None, patience_s: float | None) -> int:
    end = None if patience_s is None else time.monotonic() + patience_s
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # whoever held it has just removed the directory
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
                if busy is not None:
                    busy(holder)
                if end is None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                else:
                    _wait(descriptor, end, holder, file.parent)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    os.ftruncate(descriptor, 0)
                    # On a full disk the lock holds all the same, without a name.
                    with suppress(OSError):
                        os.pwrite(descriptor, this_process().encode(), 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait(descriptor: int, end: float, holder: str, directory: Path) -> None:
    while True:
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, f"{holder}, is still at work here: end it", str(directory))
        time.sleep(_LOOK_S)
        with suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
