"""Files that are written whole or not at all, and what the system says when they are not."""

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REMEDIES = {
    errno.EACCES: "this user may not; give another place, or have its owner change its permissions",
    errno.EPERM: "this user may not; give another place, or have its owner change its permissions",
    errno.EROFS: "give a place that may be written to",
    errno.ENOSPC: "make room there, or give a place on another disk",
    errno.EDQUOT: "make room there, or give a place on another disk",
    errno.EFBIG: "give a place on another file system, or raise ulimit -f",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "this machine has too many files open: close something",
    errno.ENOMEM: "close something, or take a machine with more memory",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a file stands where a folder is needed; give another place",
    errno.EISDIR: "a folder stands where a file is needed; give another place",
    errno.ELOOP: "symbolic links there point at each other",
    errno.EIO: "the disk or its connection fails: see dmesg",
    errno.ESTALE: "the network drive has lost it: run the command again",
}


def said_by_system(error: OSError) -> str:
    """``error`` as a sentence: the file, what the system said, and what to do about it where that is known."""
    said = error.strerror or " ".join(str(error).split()) or type(error).__name__
    places = [os.fsdecode(place) for place in (error.filename, error.filename2) if isinstance(place, str | bytes)]
    place = f"{' → '.join(places)}: " if places else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{place}{said}" + (f"; {remedy}" if remedy else "")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; when the block ends well it takes the place of ``path``.

    A reader, a crash or a power cut sees the old file or the new one, never a part; when the block raises, the old one
    stays and the temporary one goes. Missing parent directories are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # The new name itself has to reach the disk too.
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold what was written to the file or directory ``path``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Wait for and hold ``directory``'s lock; the system releases it when the process ends, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
