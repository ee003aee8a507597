"""Places that may be far away: local paths, and URIs of object stores and other file systems.

``s3://``, ``gs://``, ``hdfs://`` and ``abfs://`` are spoken by pyarrow itself, every other scheme by fsspec. What has
to be mapped into memory is copied to this host's cache first; what is written is written here and sent whole.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import PlainSerializer, PlainValidator

from optimag_dist.files import atomic, sole_writer
from optimag_dist.messages import without_secrets
from optimag_dist.types import InputError

_CHUNK = 8 << 20
_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_NOT_ALLOWED = re.compile(r"denied|credential|forbidden|unauthorized|access.?key|signature")
# An object appears in these when all of it is there; elsewhere a file is renamed when it is whole.
_OBJECT_STORES = ("s3", "gcs", "abfs")


@dataclass(frozen=True, repr=False)
class RemotePath:
    """A file or directory named by a URI, used like a path. Text made of it (``str``, messages, YAML) leaves out the
    passwords and keys that the URI may hold."""

    uri: str

    def __str__(self) -> str:
        return without_secrets(self.uri)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __truediv__(self, name: str | PurePosixPath) -> "RemotePath":
        parts = urlsplit(self.uri)
        path = f"{parts.path.rstrip('/')}/{quote(str(name))}"
        return RemotePath(parts._replace(path=path, fragment="").geturl())

    @property
    def name(self) -> str:
        parts = urlsplit(self.uri)
        return unquote(PurePosixPath(parts.path).name) or parts.netloc.rpartition("@")[2]

    @property
    def parent(self) -> "RemotePath":
        parts = urlsplit(self.uri)
        path = str(PurePosixPath(parts.path).parent) if parts.path else ""
        return RemotePath(parts._replace(path=path, fragment="").geturl())

    def absolute(self) -> "RemotePath":
        return self

    def read(self) -> bytes:
        with self.connected() as (fs, path), fs.open_input_stream(path) as stream:
            return stream.read()

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

    def cached(self) -> Path:
        """A copy of the file in this host's cache, made once for each state of the file."""
        with self.connected() as (fs, path):
            info = fs.get_file_info(path)
        if not info.is_file:
            raise InputError(f"{self}: no such file")
        folder = cache() / "files" / digest(f"{self.uri} {info.size} {info.mtime_ns}")
        copy = folder / self.name
        if not copy.is_file():
            with sole_writer(folder):
                if not copy.is_file():
                    self.fetch(copy)
        return copy

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[pafs.FileSystem, str]]:
        """The file system and the path in it; what goes wrong is told with the URI and a remedy."""
        parts = urlsplit(self.uri)
        try:
            fs, root = _file_system(parts._replace(path="/", fragment="").geturl())
            yield fs, f"{root.rstrip('/')}/{unquote(parts.path).lstrip('/')}".rstrip("/") or "/"
        except InputError:
            raise
        except (OSError, ValueError, ImportError, pa.ArrowException) as error:
            raise InputError(f"{self}: {_remedy(error)}: {without_secrets(str(error))}") from None


#: A local path, or a URI.
AnyPath: TypeAlias = Path | RemotePath


def located(place: str | AnyPath) -> AnyPath:
    """What a user names: a URI of a file system as a :class:`RemotePath`, everything else as :func:`local`."""
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
    """A path of this host that a user names, with ``~`` written out; absolute, as it goes to processes in other working
    directories, and to libraries that take ``a:b`` for a URI. ``ValueError``: it is empty, or no path can hold it."""
    if not str(place) or "\0" in str(place):
        raise ValueError("needed a path, got an empty text or one with a NUL in it")
    try:
        return Path(place).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{place}: {error}") from error


#: Type of an option that holds a path or a URI; written to YAML without secrets.
Location = Annotated[AnyPath, PlainValidator(located), PlainSerializer(str, return_type=str)]


@contextlib.contextmanager
def to_write(place: AnyPath) -> Iterator[Path]:
    """A local path to write; where ``place`` is remote, what was written is sent there when the block ends well."""
    if isinstance(place, Path):
        yield place
        return
    with scratch_folder() as folder:
        yield folder / place.name
        place.publish(folder / place.name)


@contextlib.contextmanager
def to_read(place: AnyPath) -> Iterator[Path]:
    """A local path to read for the length of the block: ``place``, or a copy of it."""
    if isinstance(place, Path):
        yield place
        return
    with scratch_folder() as folder:
        place.fetch(folder / place.name)
        yield folder / place.name


def on_this_host(file: AnyPath) -> Path:
    """``file`` itself, or its copy in the cache."""
    return file if isinstance(file, Path) else file.cached()


@contextlib.contextmanager
def connected(place: AnyPath) -> Iterator[tuple[pafs.FileSystem, str]]:
    """pyarrow's file system for ``place``, local or not, and the path in it."""
    if isinstance(place, Path):
        yield pafs.LocalFileSystem(), str(place.absolute())
    else:
        with place.connected() as found:
            yield found


def file_system(place: AnyPath) -> tuple[pafs.FileSystem, str]:
    with connected(place) as found:
        return found


def is_file(place: AnyPath) -> bool:
    with connected(place) as (fs, path):
        return fs.get_file_info(path).is_file


@contextlib.contextmanager
def opened(file: AnyPath) -> Iterator[pa.NativeFile]:
    """``file`` for reading parts of it; of a remote one only these are fetched."""
    with connected(file) as (fs, path), fs.open_input_file(path) as stream:
        yield stream


def file_sizes(place: AnyPath, *, below: bool = False) -> dict[str, int]:
    """Name → bytes of the files directly in a directory, or of all ``below`` it; empty where there is none."""
    with connected(place) as (fs, path):
        found = fs.get_file_info(pafs.FileSelector(path, recursive=below, allow_not_found=True))
    at = path.strip("/")
    return {info.path.strip("/")[len(at) + 1 :]: info.size for info in found if info.is_file}


def remove(file: AnyPath) -> None:
    with connected(file) as (fs, path), contextlib.suppress(FileNotFoundError):
        fs.delete_file(path)


def remove_tree(folder: AnyPath) -> None:
    """Remove a directory and all in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for name in file_sizes(folder, below=True):
            remove(folder / name)


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


def cache() -> Path:
    """This user's directory on this host for copies of what is remote; all in it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "optimag"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    folder = cache() / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        yield Path(made)
