"""Whether files on disk hold what was written to them.

Who writes a file records checksums of its bytes, and who reads it compares them before the bytes are used. That is done
once for each file, user and host: what has passed is remembered by the file's device, inode, size and times of change.

$XDG_CACHE_HOME/optimag/verified/KEY    empty: somebody is at it, and holds its lock; not empty: has passed
"""

import fcntl
import hashlib
import json
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import xxhash

from optimag_dist.files import atomic
from optimag_dist.progress_bar import progress_bar
from optimag_dist.storage import cache
from optimag_dist.types import InputError

# What has passed another version of the checks is checked again.
_CHECKS = 1
# The coarsest clock of a file system in use (FAT). A change so soon after another one may leave the time as it is.
_SETTLED_NS = 2_000_000_000
# Afterwards a file is verified again.
_REMEMBERED_S = 180 * 24 * 3600
# What takes less than about a second shows no bar.
LARGE = 1 << 30
_CHUNK = 64 << 20
_CHECKSUM = "checksum"

_passed: set[str] = set()


def checksum(data: Any) -> str:
    """XXH3 of bytes-like ``data``: 32 hexadecimal digits. Tells damage, not a forger, who can compute it too."""
    return xxhash.xxh3_128_hexdigest(data)


def json_digest(value: Any) -> str:
    """sha256 of ``value`` as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Sealed:
    """A file to write to that sums up what passes through: (end, checksum) of each part between two ``cut``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = xxhash.xxh3_128()
        self._size = 0
        self.segments: list[tuple[int, str]] = []

    closed = False

    def write(self, data: Any) -> int:
        self._sum.update(data)
        written = self._file.write(data)
        self._size += written
        return written

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def cut(self) -> None:
        self.segments.append((self._size, self._sum.hexdigest()))
        self._sum.reset()


class MappedFile:
    """A file mapped into memory. A file that takes its place at this path later does not change what is seen here.

    ``buffer`` is all of it, read-only, and ``state`` that of the file which is mapped. ``InputError``, ending in
    ``remedy``, where there is no such file, it cannot be read, or it has another size than ``size``.
    """

    def __init__(self, path: Path, size: int | None, remedy: str) -> None:
        self.path = path
        self._remedy = remedy
        self._sound: set[int] = set()
        try:
            self.buffer, self.state = _map(path)
        except FileNotFoundError:
            raise InputError(f"{path}: is missing; {remedy}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}; {remedy}") from error
        if size is not None and self.buffer.size != size:
            raise InputError(f"{path}: has {self.buffer.size:,} bytes, needed {size:,}; {remedy}")

    def damaged(self, what: object) -> InputError:
        return InputError(f"{self.path}: damaged ({what}); {self._remedy}")

    def checksum(self) -> str:
        return checksum(memoryview(self.buffer))

    def forget(self) -> None:
        self._sound.clear()

    def check(self, segments: Sequence[tuple[int, str]], chosen: Sequence[int]) -> None:
        """Compare the ``chosen`` ones of all ``segments`` with their checksums, each once."""
        wanted = [index for index in chosen if index not in self._sound]
        if not wanted:
            return
        begins = [0, *(end for end, _ in segments)]
        num_bytes = sum(begins[index + 1] - begins[index] for index in wanted)
        with progress_bar(f"checking {self.path.name}", num_bytes, of="bytes", wanted=num_bytes > LARGE) as advance:
            for index in wanted:
                begin, (end, recorded) = begins[index], segments[index]
                whole = xxhash.xxh3_128()
                for at in range(begin, end, _CHUNK):
                    part = self.buffer[at : min(at + _CHUNK, end)]
                    whole.update(memoryview(part))
                    advance(part.size)
                if whole.hexdigest() != recorded:
                    raise self.damaged(f"bytes {begin:,} to {end:,} are not what was written")
                self._sound.add(index)


def _map(path: Path) -> tuple[pa.Buffer, os.stat_result]:
    while True:
        before = os.stat(path)
        if not stat.S_ISREG(before.st_mode):
            raise ValueError("it is no regular file")
        with pa.memory_map(str(path)) as file:
            buffer = file.read_buffer(file.size())
        # Another file may have taken its place between the two.
        if _identity(before) == _identity(os.stat(path)):
            return buffer, before


def verified_once(files: Sequence[os.stat_result], expected: str, verify: Callable[[], None]) -> None:
    """Call ``verify``, unless it has passed for these very files before: in this process, or by this user on this host.

    Of several processes that ask at once one verifies and the others wait. Where there is no private directory to
    remember it in (no home, a read-only one), every process verifies for itself. ``files`` are as they were when they
    were opened, ``expected`` everything that ``verify``, which raises, compares them with.
    """
    if max(file.st_ctime_ns for file in files) > time.time_ns() - _SETTLED_NS:
        # It may be changed once more and look the same.
        return verify()
    key = _key(files, expected)
    if key in _passed:
        return None
    with _remembered(key) as file:
        if file is None or os.fstat(file).st_size == 0:
            verify()
            # On a full disk it is not remembered.
            with suppress(OSError):
                if file is not None:
                    os.write(file, b"1")
    _passed.add(key)
    return None


def is_verified(files: Sequence[os.stat_result], expected: str) -> bool:
    """Whether :func:`verified_once` would have nothing to do."""
    key = _key(files, expected)
    if key not in _passed:
        with suppress(OSError, RuntimeError):
            if os.lstat(_records() / key).st_size > 0:
                _passed.add(key)
    return key in _passed


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` as JSON with a checksum of its own, whole or not at all."""
    with atomic(path) as temporary:
        text = json.dumps({_CHECKSUM: _sum_of(record), **record}, indent=2, ensure_ascii=False)
        temporary.write_text(text, encoding="utf-8")


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """What :func:`write_record` wrote to ``path``; ``InputError``, ending in ``remedy``, where it is damaged."""
    try:
        return parse_record(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); {remedy}") from error


def parse_record(content: bytes) -> dict[str, Any]:
    """:func:`read_record` of a file's content; ``ValueError`` or ``RecursionError`` where it is damaged."""
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError("needed a mapping of keys to values")
    recorded = record.pop(_CHECKSUM, None)
    if recorded is not None and recorded != _sum_of(record):
        raise ValueError("its content is not what was written")
    return record


def _sum_of(record: dict[str, Any]) -> str:
    # As JSON gives it back: tuples are lists there, and numbers as keys are text.
    return checksum(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode())


def _key(files: Sequence[os.stat_result], expected: str) -> str:
    return checksum(json.dumps([_CHECKS, platform.node(), [_identity(file) for file in files], expected]).encode())


def _identity(file: os.stat_result) -> tuple[int, ...]:
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns


@contextmanager
def _remembered(key: str) -> Iterator[int | None]:
    """The locked file in which it is remembered that ``key`` has passed; None where nothing can be remembered."""
    descriptor = None
    with suppress(OSError, RuntimeError):
        file = _records() / key
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if descriptor is None:
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        with suppress(OSError):
            if os.fstat(descriptor).st_size == 0:
                os.unlink(file)
        os.close(descriptor)


def _records() -> Path:
    """The folder of what has passed; OSError or RuntimeError where there is no private one."""
    folder = cache() / "verified"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = os.lstat(folder)
    # What somebody else could have put there says nothing.
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise PermissionError(folder)
    _forget_old(folder)
    return folder


@lru_cache(maxsize=4)
def _forget_old(folder: Path) -> None:
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.stat(follow_symlinks=False).st_mtime < time.time() - _REMEMBERED_S:
                os.unlink(entry)
