"""Places that may be far away: local paths, and URIs of object stores and other file systems.

``s3://``, ``gs://``, ``hdfs://`` and ``abfs://`` are spoken by pyarrow itself, every other scheme by fsspec. What has
to be mapped into memory is copied to this host's cache first; what is written is written here and sent whole.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeAlias
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import PlainSerializer, PlainValidator
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from optimag_dist.console import console
from optimag_dist.files import atomic, sole_writer, this_process
from optimag_dist.messages import without_secrets
from optimag_dist.types import InputError, RunError

MANIFEST = "meta.json"
_CHUNK = 8 << 20
_STREAMS = 4
# Between tries to send a file; pyarrow itself has tried again before.
_PAUSES_S = (1.0, 10.0, 60.0)
# A remote lock is renewed so often; one that is not for so long has no owner any more.
_RENEW_S, _STALE_S = 5.0, 20.0
# Within this a storage shows what was written.
_SETTLE_S = 0.5
_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_NOT_ALLOWED = re.compile(r"denied|credential|forbidden|unauthorized|access.?key|signature")
# An object appears in these when all of it is there; elsewhere a file is renamed when it is whole.
_OBJECT_STORES = ("s3", "gcs", "abfs")


@dataclass(frozen=True, repr=False)
class RemotePath:
    """A file or directory named by a URI, used like a path.

    Text made of it (``str``, messages, YAML) leaves out the passwords and keys that the URI may hold.
    """

    uri: str

    def __str__(self) -> str:
        return without_secrets(self.uri)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __truediv__(self, name: str | PurePosixPath) -> "RemotePath":
        parts = urlsplit(self.uri)
        path = f"{parts.path.rstrip('/')}/{quote(str(name))}"
        return RemotePath(urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")))

    @property
    def name(self) -> str:
        parts = urlsplit(self.uri)
        return unquote(PurePosixPath(parts.path).name) or parts.netloc.rpartition("@")[2]

    @property
    def parent(self) -> "RemotePath":
        parts = urlsplit(self.uri)
        path = str(PurePosixPath(parts.path).parent) if parts.path else ""
        return RemotePath(urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")))

    def absolute(self) -> "RemotePath":
        return self

    def size(self) -> int | None:
        """Bytes of the file; None where there is no such file."""
        info = self._info()
        return info.size if info.is_file else None

    def read(self) -> bytes:
        """The whole of a small file.

        Raises:
            InputError: there is none, or it cannot be reached.
        """
        with self.connected() as (fs, path), fs.open_input_stream(path) as stream:
            return stream.read()

    def files(self, *, below: bool = False) -> dict[str, int]:
        """Name → bytes of the files directly in this directory, or of all ``below`` it; empty where there is none."""
        with self.connected() as (fs, path):
            found = fs.get_file_info(pafs.FileSelector(path, recursive=below, allow_not_found=True))
        at = path.strip("/")
        return {info.path.strip("/")[len(at) + 1 :]: info.size for info in found if info.is_file}

    def fetch(self, target: Path, advance: Callable[[int], object] = lambda size: None) -> None:
        """Copy the file to ``target``, whole or not at all; ``advance`` is told bytes as they come."""
        with self.connected() as (fs, path), atomic(target) as temporary:
            size = fs.get_file_info(path).size
            with fs.open_input_stream(path) as stream, temporary.open("wb") as file:
                while chunk := stream.read(_CHUNK):
                    file.write(chunk)
                    advance(len(chunk))
            if size is not None and temporary.stat().st_size != size:
                raise InputError(f"{self}: {temporary.stat().st_size:,} of {size:,} bytes came; run the command again")

    def publish(self, source: Path) -> None:
        """Put the file ``source`` here; what was here before stays until all of it has arrived."""
        # On a thread, which an interrupt does not reach: a stream closed half-way would declare a part the whole.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._send, source).result()

    def _send(self, source: Path) -> None:
        with self.connected() as (fs, path), source.open("rb") as file:
            whole_at_once = fs.type_name in _OBJECT_STORES
            if not whole_at_once:
                fs.create_dir(path.rpartition("/")[0], recursive=True)
            there = path if whole_at_once else f"{path}.tmp"
            stream = fs.open_output_stream(there)
            shutil.copyfileobj(file, stream, _CHUNK)
            stream.close()
            if not whole_at_once:
                fs.move(there, path)

    def unlink(self) -> None:
        """Remove the file if it is there."""
        with self.connected() as (fs, path), contextlib.suppress(FileNotFoundError):
            fs.delete_file(path)

    def cached(self) -> Path:
        """A copy of the file in this host's cache, made once for each state of the file."""
        info = self._info()
        if not info.is_file:
            raise InputError(f"{self}: no such file")
        folder = cache() / "files" / _digest(f"{self.uri} {info.size} {info.mtime_ns}")
        copy = folder / self.name
        if not copy.is_file():
            with sole_writer(folder):
                if not copy.is_file():
                    self.fetch(copy)
        return copy

    def _info(self) -> pafs.FileInfo:
        with self.connected() as (fs, path):
            return fs.get_file_info(path)

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[pafs.FileSystem, str]]:
        """The file system and the path in it; what goes wrong is told with the URI and a remedy."""
        parts = urlsplit(self.uri)
        try:
            fs, root = _file_system(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
            yield fs, f"{root.rstrip('/')}/{unquote(parts.path).lstrip('/')}".rstrip("/") or "/"
        except InputError:
            raise
        except (OSError, ValueError, ImportError, pa.ArrowException) as error:
            raise InputError(f"{self}: {_remedy(error)}: {without_secrets(str(error))}") from None


#: A local path, or a URI.
AnyPath: TypeAlias = Path | RemotePath


def located(place: str | AnyPath) -> AnyPath:
    """What a user names: a URI of a file system as a :class:`RemotePath`, everything else as an absolute path, in which
    a leading ``~`` is a home.

    Absolute, as it goes to processes in other working directories, and to libraries that take ``a:b`` for a URI.
    """
    if isinstance(place, RemotePath):
        return place
    if isinstance(place, Path):
        return local(place)
    if not isinstance(place, str):
        raise ValueError("needed a path or a URI such as s3://bucket/folder")
    if place.startswith("file://"):
        return local(unquote(urlsplit(place).path))
    return RemotePath(place.rstrip("/")) if _SCHEME.match(place) else local(place)


def local(place: str | Path) -> Path:
    """A path of this host that a user names, absolute, with ``~`` written out.

    Raises:
        ValueError: it is empty, or holds a character that no path can.
    """
    if not str(place) or "\0" in str(place):
        raise ValueError("needed a path, got an empty text or one with a NUL in it")
    try:
        return Path(place).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{place}: {error}") from error


#: Type of an option that holds a path or a URI; written to YAML without secrets.
Location = Annotated[AnyPath, PlainValidator(located), PlainSerializer(str, return_type=str)]


def cache() -> Path:
    """This user's directory on this host for copies of what is remote; all in it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "optimag"


def work_directory(place: RemotePath, owner: str = "") -> Path:
    """Where this host works on what is to be sent to ``place``; each owner has its own."""
    return cache() / "work" / _digest(f"{place.uri} {owner}")


def local_copy(place: RemotePath, check: Callable[[Path], object]) -> Path:
    """A directory's files, copied to this host's cache; named by its manifest, so that each content is copied once.

    Only files directly in it are taken, and the manifest (``meta.json``, written last by who made it) must be among
    them. Of several processes on a host one copies and the others wait. A copy that was damaged since is made anew.

    Args:
        place: the directory.
        check: raises :class:`InputError` for a directory whose content is not what its manifest says; asked each time
            before the copy is used.

    Raises:
        InputError: there is none, half of one, or no room; or it was replaced while it was copied.
    """
    files = place.files()
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
    try:
        if copy.is_dir():
            check(copy)
            return True
    except InputError:
        pass
    return False


def adopt(made: Path, place: RemotePath) -> None:
    """Send the directory ``made`` to ``place``, its manifest last, and keep it as the cache's copy."""
    for name in place.files():
        # From here on nobody takes the old one for whole.
        if name == MANIFEST:
            (place / name).unlink()
    files = sorted(file for file in made.iterdir() if file.is_file() and not file.name.startswith("."))
    with byte_bar(f"sending {place.name}", sum(file.stat().st_size for file in files)) as advance:
        for file in sorted(files, key=lambda file: file.name == MANIFEST):
            (place / file.name).publish(file)
            advance(file.stat().st_size)
    for name in place.files().keys() - {file.name for file in files}:
        (place / name).unlink()
    copy = _entry((made / MANIFEST).read_bytes()) / "copy"
    with sole_writer(copy.parent):
        if not copy.exists():
            made.rename(copy)


@contextlib.contextmanager
def to_write(place: AnyPath) -> Iterator[Path]:
    """A local path to write; where ``place`` is remote, what was written is sent there when the block ends well."""
    if isinstance(place, Path):
        yield place
        return
    with _scratch() as folder:
        yield folder / place.name
        place.publish(folder / place.name)


@contextlib.contextmanager
def to_read(place: AnyPath) -> Iterator[Path]:
    """A local path to read for the length of the block: ``place``, or a copy of it."""
    if isinstance(place, Path):
        yield place
        return
    with _scratch() as folder:
        place.fetch(folder / place.name)
        yield folder / place.name


def on_this_host(file: AnyPath) -> Path:
    """``file`` itself, or its copy in the cache."""
    return file if isinstance(file, Path) else file.cached()


def is_file(place: AnyPath) -> bool:
    """Whether there is such a file."""
    return place.is_file() if isinstance(place, Path) else place.size() is not None


@contextlib.contextmanager
def opened(file: AnyPath) -> Iterator[pa.NativeFile]:
    """``file`` for reading parts of it; of a remote one only these are fetched."""
    if isinstance(file, Path):
        with pa.OSFile(str(file)) as stream:
            yield stream
    else:
        with file.connected() as (fs, path), fs.open_input_file(path) as stream:
            yield stream


def file_system(place: AnyPath) -> tuple[pafs.FileSystem, str]:
    """pyarrow's file system for ``place``, and the path in it; for a local one too."""
    if isinstance(place, Path):
        return pafs.LocalFileSystem(), str(place.absolute())
    with place.connected() as found:
        return found


def file_sizes(place: AnyPath) -> dict[str, int]:
    """Name → bytes of the files directly in a directory; none where there is no directory."""
    if isinstance(place, RemotePath):
        return place.files()
    return {file.name: file.stat().st_size for file in place.iterdir() if file.is_file()} if place.is_dir() else {}


def files_below(place: AnyPath) -> list[str]:
    """Names, relative to it, of all files in a directory and in those below it."""
    if isinstance(place, RemotePath):
        return list(place.files(below=True))
    return [str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()]


def remove(file: AnyPath) -> None:
    """Remove a file if it is there."""
    if isinstance(file, RemotePath):
        file.unlink()
    else:
        file.unlink(missing_ok=True)


def remove_tree(folder: AnyPath) -> None:
    """Remove a directory and all in it, if it is there."""
    if isinstance(folder, RemotePath):
        for name in folder.files(below=True):
            (folder / name).unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(place: AnyPath, holder: str) -> None:
    """Say that ``holder`` is waited for."""
    print(f"{place}: {holder}, is at work on it; waiting for it to end", file=sys.stderr, flush=True)


@contextlib.contextmanager
def sole_user(place: AnyPath, busy: Callable[[AnyPath, str], None] = wait_for) -> Iterator[None]:
    """Hold the lock of a directory that one process at a time works on.

    Of a local one it is the system's, which ends with the process. A remote one has a lock among the processes of this
    host, and for other hosts a file ``.NAME.lock`` beside it that is renewed while the work goes on; one that is not
    renewed was left by a process that was killed, and is taken over. Two hosts that begin within the same half second
    are told apart on every storage on which a file is seen as soon as it is written.

    Args:
        place: the directory; a local one is made if missing.
        busy: called with ``place`` and who holds the lock; raises to go away instead of waiting.

    Raises:
        InputError: it cannot be written to.
        RunError: this process was held up for so long that another one took its lock.
    """
    folder = place if isinstance(place, Path) else cache() / "locks" / _digest(place.uri)
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
                file.unlink()
            else:
                lost.set()
    if lost.is_set():
        raise RunError(
            f"{place}: another process took this directory over while this one gave no sign of life for {_STALE_S:g} s;"
            f" what both have written may be mixed. Remove it, and run one of them again"
        )


def _content(file: RemotePath) -> str | None:
    return None if file.size() is None else file.read().decode(errors="replace")


def _changed(file: RemotePath, known: str) -> bool:
    """Whether ``file`` changes, or goes, within the time in which its owner renews it a few times."""
    end = time.monotonic() + _STALE_S
    while time.monotonic() < end:
        time.sleep(min(_RENEW_S, _SETTLE_S))
        if _content(file) != known:
            return True
    return False


def _write(file: RemotePath, text: str) -> None:
    with _scratch() as folder:
        (folder / "lock").write_text(text, encoding="utf-8")
        file.publish(folder / "lock")


class Mirror:
    """A directory worked on here and kept there: files are sent in order, by a thread, and each whole.

    Attributes:
        path: the directory to work in. For a local ``place`` it is the place itself, and nothing is sent.

    Args:
        place: the directory.
        owner: who works on it; each owner has a directory of its own in the cache.
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
        found = self._place.files(below=True)
        _fetch_all(self._place, self.path, {name: size for name, size in found.items() if wanted(name)})

    def publish(self, file: Path) -> None:
        """Send ``file``, in :attr:`path`, after those that wait; returns at once.

        Raises:
            InputError: an earlier file could not be sent.
        """
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
        there = self._place.files(below=True)
        for file in sorted(self.path.rglob("*")):
            if file.is_file() and there.get(str(file.relative_to(self.path))) != file.stat().st_size:
                self.publish(file)

    def flush(self) -> None:
        """Wait until all is sent.

        Raises:
            InputError: a file could not be sent.
        """
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


@lru_cache(maxsize=64)
def _file_system(root: str) -> tuple[pafs.FileSystem, str]:
    try:
        return pafs.FileSystem.from_uri(root)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
    file_system, path = fsspec.core.url_to_fs(root)
    return pafs.PyFileSystem(pafs.FSSpecHandler(file_system)), path


def _remedy(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, FileNotFoundError) or "no_such_bucket" in text or "no such bucket" in text:
        return "no such file, folder or bucket"
    if isinstance(error, PermissionError) or _NOT_ALLOWED.search(text):
        return (
            "not allowed; every process that reads or writes it needs credentials: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or ~/.aws for s3, GOOGLE_APPLICATION_CREDENTIALS for gs"
        )
    if isinstance(error, ImportError):
        return "this kind of storage needs one more package"
    if "protocol not known" in text:
        return "unknown kind of storage; needed s3://, gs://, hdfs://, abfs:// or another that fsspec knows"
    return "not reachable"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _entry(manifest: bytes) -> Path:
    return cache() / "copies" / hashlib.sha256(manifest).hexdigest()[:32]


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    folder = cache() / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        yield Path(made)


def _fetch_all(place: RemotePath, target: Path, files: Mapping[str, int]) -> None:
    with byte_bar(f"copying {place.name}", sum(files.values())) as advance, ThreadPoolExecutor(_STREAMS) as threads:
        for fetched in [threads.submit((place / name).fetch, target / name, advance) for name in files]:
            fetched.result()


@contextlib.contextmanager
def byte_bar(title: str, total: int, *, wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar over bytes on standard error, nothing where that is no terminal or the bar not ``wanted``."""
    err = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not (wanted and err.is_terminal)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda size: bar.advance(task, size)
