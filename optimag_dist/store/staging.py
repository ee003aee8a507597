"""A store is made beside its target, goes on where a killed process stopped, and appears all at once or not at all.

.NAME.partial/                 locked by the one process that works on it
.NAME.partial/progress.json    what the files are made from, and which of them are finished
.NAME.partial/store/           becomes NAME when everything is on the disk
.NAME.old                      the store that stood there before, until the new one stands
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeAlias

from optimag_dist.files import LOCK, sync
from optimag_dist.integrity import MappedFile, json_digest, parse_record, read_record, write_record
from optimag_dist.locks import sole_user
from optimag_dist.options import Options, validate_options
from optimag_dist.remote_copies import MANIFEST, adopt, work_directory
from optimag_dist.storage import AnyPath, RemotePath, file_sizes, located
from optimag_dist.store.layout import STORE_FILES, VERSION, StoredFile, check_replaceable, old_store
from optimag_dist.store.reader import GraphStore
from optimag_dist.types import InputError

#: Takes lines for people.
Say: TypeAlias = Callable[[str], None]

_PROGRESS = "progress.json"


class FinishedFile(StoredFile):
    """A file on the disk as it will be published; facts on it, and the checksum of its namesake in the scratch."""

    facts: Mapping[str, int] = {}
    beside: str | None = None


class _Progress(Options):
    fingerprint: str
    finished: Mapping[str, FinishedFile] = {}


class Staging:
    """Folders for the files of a store that is being made, and for others; ``finished`` has those of
    earlier runs too."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        self.scratch = directory
        self.store = directory / "store"
        self._fingerprint = fingerprint
        self.finished = self._kept()
        self.remove_unfinished()
        self.store.mkdir(exist_ok=True)

    def finish(self, name: str, stored: StoredFile, **facts: int) -> FinishedFile:
        """Record that file ``name`` of the store is complete and on the disk."""
        other = self.scratch / name
        beside = _checksum_of(other) if other.is_file() else None
        self.finished[name] = FinishedFile(**dict(stored), facts=facts, beside=beside)
        progress = _Progress(fingerprint=self._fingerprint, finished=self.finished)
        write_record(self.scratch / _PROGRESS, progress.model_dump(mode="json"))
        return self.finished[name]

    def remove_unfinished(self) -> None:
        """Remove everything that the next process could not use."""
        if not self.finished:
            shutil.rmtree(self.store, ignore_errors=True)
        keep = {self.store, self.scratch / LOCK, self.scratch / _PROGRESS}
        keep |= {self.store / name for name in self.finished}
        # What stands in the scratch folder under the name of a finished file belongs to it.
        keep |= {self.scratch / name for name in self.finished}
        for path in [*self.scratch.iterdir(), *(self.store.iterdir() if self.store.is_dir() else ())]:
            if path not in keep:
                path.unlink()

    def _kept(self) -> dict[str, FinishedFile]:
        path = self.scratch / _PROGRESS
        try:
            progress = validate_options(_Progress, read_record(path, ""), source=str(path))
        except InputError:
            return {}
        kept = progress.finished if progress.fingerprint == self._fingerprint else {}
        return {name: file for name, file in kept.items() if self._is_whole(name, file)}

    def _is_whole(self, name: str, file: FinishedFile) -> bool:
        """Whether the bytes are those that were written: they are to be published as they are."""
        if file.segments is None or "/" in name:
            return False
        try:
            MappedFile(self.store / name, file.size, "").check(file.segments, range(len(file.segments)))
            return file.beside is None or _checksum_of(self.scratch / name) == file.beside
        except InputError:
            return False


def staging_directory(target: Path) -> Path:
    return target.parent / f".{target.name}.partial"


def bytes_under(directory: Path) -> int:
    """Bytes of all files in a directory, which others may be changing, and below it."""
    size = 0
    with suppress(FileNotFoundError):
        for path in directory.rglob("*"):
            size += path.stat().st_size if path.is_file() else 0
    return size


def fingerprint(inputs: Sequence[Path], settings: str) -> str:
    """sha256 of the format version, the settings and of name, size and time of change of every input file."""
    stats = [(str(path.resolve()), path.stat()) for path in inputs]
    record = [VERSION, settings, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)]
    return json_digest(record)


@contextmanager
def staging(target: Path, fingerprint: str, needed: int, say: Say) -> Iterator[Staging]:
    """The folder to make the store ``target`` in; :func:`publish` it at the end of the block.

    First puts right what a killed process left: finished files made from the same ``fingerprint`` are kept, others go;
    a store that had been moved away comes back. A second process waits for the first one.

    An ``InputError`` in the block removes the folder: the input has to change. Any other error (a full disk, an
    interrupt) leaves the finished files for the next attempt. ``needed`` is an estimate of the store's bytes, for the
    message about a full disk. ``InputError`` where the folder cannot be written to, or the disk is full.
    """
    directory = staging_directory(target)

    def busy(place: AnyPath, holder: str) -> None:
        say(f"{place}: another process ({holder}) is at work on this store; waiting for it to end")

    with sole_user(directory, busy):
        if (old := old_store(target)).exists():
            if target.exists():
                shutil.rmtree(old)
            else:
                os.rename(old, target)
        stage = Staging(directory, fingerprint)
        if stage.finished:
            say(f"{directory}: kept from an interrupted run: {', '.join(stage.finished)}")
        try:
            yield stage
        except InputError:
            stage.finished.clear()
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"{target}: the disk is full after {bytes_under(directory):,} of at most {needed:,} bytes; "
                f"nothing was put in place: free some space and run the same command again, or remove {directory}"
            ) from error
        else:
            stage.finished.clear()
        finally:
            if stage.finished:
                stage.remove_unfinished()
                say(f"{directory}: finished files are kept; the same command goes on from there")
            else:
                shutil.rmtree(directory, ignore_errors=True)


def publish(stage: Staging, target: Path) -> None:
    """Make the finished store appear as ``target``, whose old content goes only once the new one stands."""
    sync(stage.store)
    old = old_store(target)
    replacing = target.exists()
    if replacing:
        os.rename(target, old)
    try:
        os.rename(stage.store, target)
    except BaseException:
        if replacing:
            os.rename(old, target)
        raise
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def holds(target: Path, content_hash: str, overwrite: bool) -> bool:
    """Whether a sound store of this content stands at ``target``; ``InputError`` where another does, not to be
    replaced."""
    if not target.exists() or not any(target.iterdir()):
        return False
    try:
        standing = GraphStore.open(target)
        if standing.content_hash == content_hash:
            standing.verify()
            return True
        problem = f"{target}: holds another graph ({standing.name}, hash {standing.content_hash[:16]})"
    except InputError as error:
        problem = str(error)
    if not overwrite:
        raise InputError(f"{problem}; name another folder, or have the old one overwritten (overwrite)")
    return False


def put_in_place(stage: Staging, made: str, target: Path, overwrite: bool, say: Say) -> None:
    """:func:`publish` the store, whose content hash is ``made``, unless ``target`` :func:`holds` it."""
    if holds(target, made, overwrite):
        say(f"{target}: holds this very graph already; left as it is")
    else:
        publish(stage, target)


def destination(out: str | AnyPath, source: GraphStore | None = None) -> AnyPath:
    """Where a store is to be written that is made from ``source``: neither there, nor where something else stands."""
    place = located(out)
    if isinstance(place, Path):
        place = place.resolve()
        check_replaceable(place)
    if source is not None and place == source.location:
        raise InputError(f"{place}: is the store to read, which stays as it is; name a new folder for the new one")
    return place


def make_store(place: AnyPath, make: Callable[[Path, bool], GraphStore], overwrite: bool, say: Say) -> GraphStore:
    """The store that ``make`` makes at a path of this host, replacing what stands there or not; sent to a remote
    ``place``, which must hold nothing else, when it is whole."""
    if isinstance(place, Path):
        return make(place, overwrite)
    with sole_user(place):
        there = file_sizes(place)
        foreign = [name for name in there if not any(fnmatch(name, pattern) for pattern in STORE_FILES)]
        if foreign and MANIFEST not in there:
            raise InputError(f"{place}: has {foreign[0]} in it, no part of a graph store; name a new folder for it")
        standing = _hash_of(place) if MANIFEST in there else None
        made = make(work_directory(place) / "store", True)
        if standing == made.content_hash:
            say(f"{place}: holds this very graph already; left as it is")
        elif standing is not None and not overwrite:
            what = f"holds another graph (hash {standing[:16]})" if standing else "holds a damaged graph"
            raise InputError(f"{place}: {what}; name another folder, or have the old one overwritten (overwrite)")
        else:
            adopt(made.path, place)
        return GraphStore.open(place)


def _hash_of(place: RemotePath) -> str:
    """The content hash of the store at ``place``, nothing where its description is damaged."""
    try:
        return str(parse_record((place / MANIFEST).read())["content_hash"])
    except (ValueError, KeyError, RecursionError):
        return ""


def _checksum_of(file: Path) -> str:
    return MappedFile(file, None, "").checksum()
