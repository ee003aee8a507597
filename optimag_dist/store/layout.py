"""What a graph store looks like on disk.

meta.json                 counts, names and widths, sizes and digests of the files, content hash
nodes.arrow               one row per node: id, [label], [split], "present:<modality>" each
topology.arrow            one list column whose offsets and values are the in-CSR
modality-<name>.arrow     fixed-size lists, BATCH_ROWS rows per record batch
attribute-<name>.arrow    raw text or bytes, ATTRIBUTE_ROWS rows per record batch
links.arrow               if links are held out: one row per query, val then test: part, source, target, negatives
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np

from optimag_dist.options import Options, validate_options
from optimag_dist.types import InputError

FORMAT: Final = "optimag-store"
VERSION = 1
META = "meta.json"
NODES = "nodes.arrow"
TOPOLOGY = "topology.arrow"
LINKS = "links.arrow"
# Names of all but ``meta.json``.
STORE_FILES = (NODES, TOPOLOGY, LINKS, "modality-*.arrow", "attribute-*.arrow")
SPLITS = ("train", "val", "test")

# Rows per record batch: one batch of 1,280 float32 features is 84 MB, and ten million nodes are 610 batches.
BATCH_ROWS = 16_384
# Pictures are large and looked at one by one.
ATTRIBUTE_ROWS = 1_024

# Modality and attribute names become file names in the store and module names in a model.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


StoredDtype: TypeAlias = Literal["float16", "float32"]


class Modality(Options):
    """One kind of features.

    Attributes:
        name: as in the schema.
        width: numbers per node.
        dtype: how they are stored.
    """

    name: str
    width: int
    dtype: StoredDtype

    @property
    def file(self) -> str:
        return f"modality-{self.name}.arrow"


class StoredFile(Options):
    """Size in bytes, to recognise a truncated file cheaply, and digest of the content."""

    size: int
    digest: str


class StoreMeta(Options):
    """``meta.json``."""

    format: Literal["optimag-store"] = FORMAT
    version: int = VERSION
    name: str
    num_nodes: int
    num_arcs: int
    directed: bool
    id_type: Literal["int64", "string"]
    modalities: tuple[Modality, ...]
    classes: tuple[str, ...] | None
    has_split: bool
    attributes: dict[str, Literal["text", "image"]]
    files: dict[str, StoredFile]

    @property
    def content_hash(self) -> str:
        """sha256 of what the graph is: not of its name, path, time of writing or format version."""
        content = self.model_dump(mode="json", exclude={"format", "version", "name", "files"})
        content["digests"] = {name: file.digest for name, file in self.files.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_names(names: Iterable[str], place: str = "") -> None:
    """Raise ``InputError``, beginning with ``place``, unless all modalities, or all attributes, can be called so."""
    names = list(names)
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{place}the name {name!r} may hold only letters, digits, '_' and '-', starting with a letter; "
                "rename it"
            )
        if name.lower() == "id":
            raise InputError(f"{place}the name {name!r} is kept for the column of node ids in exported tables")
    # Two names that differ in case only would be one file on a case-insensitive disk.
    if len({name.lower() for name in names}) != len(names):
        raise InputError(f"{place}names must differ in more than upper and lower case, got {names}")


def attribute_file(name: str) -> str:
    return f"attribute-{name}.arrow"


def old_store(target: Path) -> Path:
    """Where a store stands while another one takes its place."""
    return target.parent / f".{target.name}.old"


def write_meta(directory: Path, meta: StoreMeta) -> None:
    record = {"content_hash": meta.content_hash, **meta.model_dump(mode="json")}
    with (directory / META).open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def read_meta(directory: Path) -> StoreMeta:
    """Read and check ``meta.json`` and the sizes of the files it names.

    Raises:
        InputError: no store, another format version, or a file missing or of another size than recorded.
    """
    again = "run optimag ingest again, overwriting it"
    if not directory.exists():
        left = old_store(directory)
        hint = (
            f"; an interrupted overwrite left the old one as {left}, which the next ingest restores"
            if left.exists()
            else ""
        )
        raise InputError(f"{directory}: no such graph store; make one with optimag ingest{hint}")
    path = directory / META
    if not path.is_file():
        raise InputError(f"{directory}: not a graph store, or half of one (no {META}); {again}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {again}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path}: not the description of a graph store; {again}")
    if record.get("version") != VERSION:
        raise InputError(
            f"{path}: written in format version {record.get('version')}, this program reads version {VERSION}; {again}"
        )
    recorded_hash = record.pop("content_hash", None)
    meta = validate_options(StoreMeta, record, source=str(path))
    if recorded_hash != meta.content_hash:
        raise InputError(f"{path}: damaged (its content hash does not match its own entries); {again}")
    check_sizes(directory, meta.files, f": half a store; {again}")
    return meta


def check_sizes(directory: Path, files: Mapping[str, StoredFile], remedy: str) -> None:
    """Raise ``InputError``, ending in ``remedy``, for the first of ``files`` that is missing or of another size."""
    for name, file in files.items():
        size = (directory / name).stat().st_size if (directory / name).is_file() else None
        if size != file.size:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise InputError(f"{directory / name}: {found}, needed {file.size:,}{remedy}")


def flat_batches(batches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of one mapped file as one, for kernels that read them where they lie.

    Returns:
        The part of the map that holds them, flat; and (batches,) int64: where in it each begins.
    """
    first, size = batches[0], batches[0].itemsize
    starts = np.array([(batch.ctypes.data - first.ctypes.data) // size for batch in batches], np.int64)
    # All lie in one map, which the view of the first one keeps alive.
    flat = np.lib.stride_tricks.as_strided(first, (int(starts[-1]) + batches[-1].size,), (size,), writeable=False)
    return flat, starts


def check_replaceable(target: Path) -> None:
    """Raise ``InputError`` when ``target`` holds something that is no graph store, which must never be replaced."""
    if not target.exists():
        return
    if target.is_dir() and (not any(target.iterdir()) or any((target / name).is_file() for name in (TOPOLOGY, NODES))):
        return
    what = "a folder with other things in it" if target.is_dir() else "a file"
    raise InputError(f"{target}: is {what}, not a graph store; name a new folder to write the store to")
