"""Directories that lie elsewhere: copied here to be read, or worked on here and sent."""

import contextlib
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optimag_dist.files import sole_writer
from optimag_dist.progress_bar import progress_bar
from optimag_dist.storage import AnyPath, RemotePath, cache, digest, file_sizes, remove
from optimag_dist.types import InputError

MANIFEST = "meta.json"
_STREAMS = 4
# Between tries to send a file; pyarrow itself has tried again before.
_PAUSES_S = (1.0, 10.0, 60.0)


def work_directory(place: RemotePath, owner: str = "") -> Path:
    """Where this host works on what is to be sent to ``place``; each owner has its own."""
    return cache() / "work" / digest(f"{place.uri} {owner}")


def local_copy(place: RemotePath, check: Callable[[Path], object]) -> Path:
    """A directory's files, copied to this host's cache; named by its manifest, so that each content is copied once.

    Only files directly in it are taken, and the manifest (``meta.json``, written last by who made it) must be among
    them. Of several processes on a host one copies and the others wait. A copy that was damaged since is made anew.
    ``check`` raises :class:`InputError` for a directory whose content is not what its manifest says; it is asked each
    time before the copy is used. ``InputError`` too: there is none, half of one, or no room; or it was replaced
    meanwhile.
    """
    files = file_sizes(place)
    if MANIFEST not in files:
        what = "half of one" if files else "nothing there"
        raise InputError(f"{place}: needed a directory that was written to its end, found {what} (no {MANIFEST})")
    manifest = (place / MANIFEST).read()
    copy = _entry(manifest) / "copy"
    if _is_whole(copy, check):
        return copy
    with sole_writer(copy.parent):
        if _is_whole(copy, check):
            return copy
        # Whoever has mapped the damaged one keeps what it has.
        shutil.rmtree(copy, ignore_errors=True)
        needed, free = sum(files.values()), shutil.disk_usage(copy.parent).free
        if needed > free:
            raise InputError(
                f"{place}: {needed / 2**30:.1f} GiB to copy and {free / 2**30:.1f} GiB are free in {cache()}; make "
                f"room, or set XDG_CACHE_HOME to a larger disk"
            )
        half = copy.with_name(".half")
        # What a killed copy has left.
        shutil.rmtree(half, ignore_errors=True)
        _fetch_all(place, half, files)
        if (place / MANIFEST).read() != manifest:
            raise InputError(f"{place}: was replaced while it was copied; run the command again")
        try:
            check(half)
        except InputError as error:
            raise InputError(f"{place}: what was copied from there cannot be used: {error}") from error
        half.rename(copy)
    return copy


def _is_whole(copy: Path, check: Callable[[Path], object]) -> bool:
    with contextlib.suppress(InputError):
        if copy.is_dir():
            check(copy)
            return True
    return False


def adopt(made: Path, place: RemotePath) -> None:
    """Send the directory ``made`` to ``place``, its manifest last, and keep it as the cache's copy."""
    # From here on nobody takes the old one for whole.
    remove(place / MANIFEST)
    files = sorted(file for file in made.iterdir() if file.is_file() and not file.name.startswith("."))
    with progress_bar(f"sending {place.name}", sum(file.stat().st_size for file in files), of="bytes") as advance:
        for file in sorted(files, key=lambda file: file.name == MANIFEST):
            (place / file.name).publish(file)
            advance(file.stat().st_size)
    for name in file_sizes(place).keys() - {file.name for file in files}:
        remove(place / name)
    copy = _entry((made / MANIFEST).read_bytes()) / "copy"
    with sole_writer(copy.parent):
        if not copy.exists():
            made.rename(copy)


class Mirror:
    """A directory worked on here and kept at ``place``: files are sent in order, by a thread, and each whole.

    ``path`` is the directory to work in, one for each ``owner``. For a local ``place`` it is the place itself, and
    nothing is sent.
    """

    def __init__(self, place: AnyPath, owner: str) -> None:
        self._place = place
        self.path = place if isinstance(place, Path) else work_directory(place, owner) / place.name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._lock = threading.Lock()
        self._waiting: set[Path] = set()
        self._error: InputError | None = None

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # What waits is sent also when the work has failed: it goes on from there.
        with contextlib.suppress(InputError) if kind else contextlib.nullcontext():
            self.flush()

    def fetch(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Make :attr:`path` hold what is there, and nothing else; ``wanted`` chooses by name."""
        if isinstance(self._place, Path):
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        found = file_sizes(self._place, below=True)
        _fetch_all(self._place, self.path, {name: size for name, size in found.items() if wanted(name)})

    def publish(self, file: Path) -> None:
        """Send ``file``, in :attr:`path`, after those that wait; returns at once. Raises what an earlier file met."""
        if isinstance(self._place, Path):
            return
        with self._lock:
            if self._error is not None:
                raise self._error
            # One that waits will send what the file holds by then.
            if file not in self._waiting:
                self._waiting.add(file)
                self._thread.submit(self._send, self._place, file)

    def publish_all(self) -> None:
        """Send every file in :attr:`path` that is not there yet, or of another size."""
        if isinstance(self._place, Path):
            return
        self.flush()
        there = file_sizes(self._place, below=True)
        for file in sorted(self.path.rglob("*")):
            if file.is_file() and there.get(str(file.relative_to(self.path))) != file.stat().st_size:
                self.publish(file)

    def flush(self) -> None:
        """Wait until all is sent; ``InputError`` where a file could not be."""
        self._thread.submit(lambda: None).result()
        if self._error is not None:
            raise self._error

    def _send(self, place: RemotePath, file: Path) -> None:
        with self._lock:
            self._waiting.remove(file)
            if self._error is not None:
                return
        for pause in (*_PAUSES_S, None):
            try:
                return (place / str(file.relative_to(self.path))).publish(file)
            except InputError as error:
                if pause is None:
                    self._error = error
                else:
                    time.sleep(pause)


def _entry(manifest: bytes) -> Path:
    return cache() / "copies" / hashlib.sha256(manifest).hexdigest()[:32]


def _fetch_all(place: RemotePath, target: Path, files: Mapping[str, int]) -> None:
    with (
        progress_bar(f"copying {place.name}", sum(files.values()), of="bytes") as advance,
        ThreadPoolExecutor(_STREAMS) as threads,
    ):
        for fetched in [threads.submit((place / name).fetch, target / name, advance) for name in files]:
            fetched.result()
