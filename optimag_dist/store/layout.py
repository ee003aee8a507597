"""What a graph store looks like on disk.

meta.json                 counts, names and widths; of each file its size, checksums and a digest; content hash
nodes.arrow               one row per node: id, [label], [split], "present:<modality>" each
topology.arrow            one list column whose offsets and values are the in-CSR
modality-<name>.arrow     fixed-size lists, BATCH_ROWS rows per record batch
columns-<name>.arrow      mean and spread of its columns; stores of earlier versions lack it
attribute-<name>.arrow    raw text or bytes, ATTRIBUTE_ROWS rows per record batch
links.arrow               if links are held out: one row per query, val then test: part, source, target, negatives

Version 1 had no checksums. Its files are compared with their digests, which takes longer and reads all of a file.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from optimag_dist.integrity import json_digest, read_record, write_record
from optimag_dist.options import Options, validate_options
from optimag_dist.types import InputError

FORMAT: Final = "optimag-store"
VERSION = 2
READABLE_VERSIONS = (1, 2)
META = "meta.json"
NODES = "nodes.arrow"
TOPOLOGY = "topology.arrow"
LINKS = "links.arrow"
# Names of all but ``meta.json``.
STORE_FILES = (NODES, TOPOLOGY, LINKS, "modality-*.arrow", "columns-*.arrow", "attribute-*.arrow")
SPLITS = ("train", "val", "test")
AGAIN = "run optimag ingest again, overwriting it, or copy it anew from where it is whole"

# Rows per record batch: one batch of 1,280 float32 features is 84 MB, and ten million nodes are 610 batches.
BATCH_ROWS = 16_384
# Pictures are large and looked at one by one.
ATTRIBUTE_ROWS = 1_024

# Modality and attribute names become file names in the store and module names in a model.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


StoredDtype: TypeAlias = Literal["float16", "float32"]
#: Becomes part of a file's name.
FileName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]{1,200}$")]
Hex: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32,64}$")]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**62)]


class Modality(Options):
    """One kind of features: its name in the schema, numbers per node, and how they are stored."""

    name: FileName
    width: int = Field(ge=0, lt=2**31)
    dtype: StoredDtype

    @property
    def file(self) -> str:
        return f"modality-{self.name}.arrow"

    @property
    def columns_file(self) -> str:
        return f"columns-{self.name}.arrow"


class StoredFile(Options):
    """What was written: bytes, and a digest of the content, however the bytes lie. ``segments`` are (end, checksum) of
    the parts of an Arrow file one after the other: each record batch, the first one with what stands before it, and the
    footer. None in files that version 1 wrote."""

    size: Count
    digest: Hex
    segments: tuple[tuple[Count, Hex], ...] | None = None

    @model_validator(mode="after")
    def _covers_all(self) -> "StoredFile":
        if self.segments is not None:
            ends = [0, *(end for end, _ in self.segments)]
            if len(ends) < 3 or ends[-1] != self.size or any(a > b for a, b in pairwise(ends)):
                raise ValueError("the segments do not cover the file")
        return self


class StoreMeta(Options):
    """``meta.json``."""

    format: Literal["optimag-store"] = FORMAT
    version: int = VERSION
    name: str
    num_nodes: int = Field(ge=1, lt=2**62)
    num_arcs: Count
    directed: bool
    id_type: Literal["int64", "string"]
    modalities: tuple[Modality, ...]
    classes: tuple[str, ...] | None
    has_split: bool
    attributes: dict[FileName, Literal["text", "image"]]
    files: dict[str, StoredFile]

    @model_validator(mode="after")
    def _names_its_files(self) -> "StoreMeta":
        needed = {NODES, TOPOLOGY, *(m.file for m in self.modalities), *map(attribute_file, self.attributes)}
        optional = {LINKS, *(m.columns_file for m in self.modalities)}
        if strange := sorted((self.files.keys() ^ needed) - optional):
            raise ValueError(f"its list of files and its entries do not fit together: {strange[0]!r}")
        if not all(modality.width for modality in self.modalities):
            raise ValueError("a modality of width 0")
        return self

    @property
    def content_hash(self) -> str:
        """sha256 of what the graph is: not of its name, path, time of writing or format version."""
        content = self.model_dump(mode="json", exclude={"format", "version", "name", "files"})
        derived = {modality.columns_file for modality in self.modalities}
        content["digests"] = {name: file.digest for name, file in self.files.items() if name not in derived}
        return json_digest(content)


def check_names(names: Iterable[str], place: str = "") -> None:
    """Raise ``InputError``, beginning with ``place``, unless all modalities, or all attributes, can be called so."""
    names = list(names)
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{place}the name {name!r} may hold only letters, digits, '_' and '-', a letter first; rename it"
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
    record = {"content_hash": meta.content_hash, **meta.model_dump(mode="json"), "version": VERSION}
    write_record(directory / META, record)


def read_meta(directory: Path) -> StoreMeta:
    """``meta.json`` and the sizes of its files, checked; ``InputError`` where there is no whole store of a known
    version."""
    if not directory.exists():
        left = old_store(directory)
        hint = f"; an interrupted overwrite left the old one as {left}, which the next ingest restores"
        raise InputError(
            f"{directory}: no such graph store; make one with optimag ingest{hint if left.exists() else ''}"
        )
    path = directory / META
    if not path.is_file():
        raise InputError(f"{directory}: not a graph store, or half of one (no {META}); {AGAIN}")
    record = read_record(path, AGAIN)
    if record.get("format") != FORMAT:
        raise InputError(f"{path}: not the description of a graph store; {AGAIN}")
    if record.get("version") not in READABLE_VERSIONS:
        known = ", ".join(map(str, READABLE_VERSIONS))
        raise InputError(
            f"{path}: in format version {record.get('version')}, this program reads version {known}; {AGAIN}"
        )
    recorded_hash = record.pop("content_hash", None)
    meta = validate_options(StoreMeta, record, source=str(path))
    if recorded_hash != meta.content_hash:
        raise InputError(f"{path}: damaged (its content hash does not match its own entries); {AGAIN}")
    check_sizes(directory, meta.files, f": half a store; {AGAIN}")
    return meta


def check_sizes(directory: Path, files: Mapping[str, StoredFile], remedy: str) -> None:
    """Raise ``InputError``, ending in ``remedy``, for the first of ``files`` that is missing or of another size."""
    for name, file in files.items():
        size = (directory / name).stat().st_size if (directory / name).is_file() else None
        if size != file.size:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise InputError(f"{directory / name}: {found}, needed {file.size:,}{remedy}")


def check_replaceable(target: Path) -> None:
    """Raise ``InputError`` when ``target`` holds something that is no graph store, which must never be replaced."""
    if not target.exists():
        return
    if target.is_dir() and (not any(target.iterdir()) or any((target / name).is_file() for name in (TOPOLOGY, NODES))):
        return
    what = "a folder with other things in it" if target.is_dir() else "a file"
    raise InputError(f"{target}: is {what}, not a graph store; name a new folder to write the store to")
