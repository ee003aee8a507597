"""What inference leaves in its directory: Parquet parts in order, and ``_meta.json``, written last.

part-000000.parquet …   rows of consecutive nodes; the schema's metadata names the job they belong to, and has a digest
.layers/                what one layer hands to the next while the job runs; a checksum stands at a file's end

What is kept of a run that was cut short is verified before it is used, on this host; of remote files this is left to
where they lie.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optimag_dist.files import atomic
from optimag_dist.integrity import MappedFile, checksum, parse_record, verified_once, write_record
from optimag_dist.storage import AnyPath, is_file, opened, remove_tree, to_write
from optimag_dist.store.arrow_files import digest_of
from optimag_dist.types import InputError

# The underscore hides it from readers that take the directory for one table.
META = "_meta.json"
_KEY = b"optimag_job"
_DIGEST = b"optimag_digest"
# What reading damaged Parquet ends in; InputError is a ValueError.
_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, MemoryError)
_SEAL = len(checksum(b""))


@dataclass(frozen=True)
class Parts:
    """The directory of one job. ``key`` is of everything that decides the numbers: parts of another key are never mixed
    in or overwritten. Every part but the last has ``block_size`` rows, of ``num_rows`` in all."""

    path: AnyPath
    key: str
    num_rows: int
    block_size: int

    @property
    def num_parts(self) -> int:
        return -(-self.num_rows // self.block_size)

    def rows(self, index: int) -> range:
        start = index * self.block_size
        return range(start, min(start + self.block_size, self.num_rows))

    def part(self, index: int) -> AnyPath:
        return self.path / f"part-{index:06d}.parquet"

    def activations(self, layer: int, index: int) -> AnyPath:
        return self.path / ".layers" / self.key / f"{layer}-{index:06d}.npy"

    def write_part(self, index: int, table: pa.Table) -> None:
        notes = {_KEY: self.key.encode(), _DIGEST: digest_of(table.combine_chunks().to_batches())}
        with to_write(self.part(index)) as file, atomic(file) as temporary:
            pq.write_table(table.replace_schema_metadata(notes), temporary)

    def write_activations(self, layer: int, index: int, values: np.ndarray) -> None:
        place = self.activations(layer, index)
        with to_write(place) as target, atomic(target) as temporary:
            with temporary.open("wb") as file:
                np.save(file, values)
            seal = MappedFile(temporary, None, "").checksum()
            with temporary.open("ab") as file:
                file.write(seal.encode())

    def has_activations(self, layer: int, index: int) -> bool:
        """Whether they are there and whole."""
        place = self.activations(layer, index)
        if not isinstance(place, Path) or not is_file(place):
            return is_file(place)
        content = memoryview(MappedFile(place, None, "").buffer)
        return checksum(content[:-_SEAL]).encode() == bytes(content[-_SEAL:])

    def has_part(self, index: int) -> bool:
        """Whether the part is there and whole; ``InputError`` where it belongs to another job."""
        if not is_file(self.part(index)):
            return False
        try:
            with opened(self.part(index)) as file:
                footer = pq.read_metadata(file)
        except _DAMAGE:
            return False
        notes = footer.metadata or {}
        if notes.get(_KEY) != self.key.encode():
            raise self.foreign(self.part(index))
        return footer.num_rows == len(self.rows(index)) and _is_whole(self.part(index), notes.get(_DIGEST))

    def finished(self) -> bool:
        """Whether ``_meta.json`` says that all is there, and it is; ``InputError`` where it is another job's."""
        if isinstance(self.path, Path) and self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; needed a directory for the results, or a free path")
        file = self.path / META
        if not is_file(file):
            return False
        try:
            with opened(file) as text:
                key = parse_record(text.read())["key"]
        except (ValueError, KeyError, RecursionError, OSError) as error:
            raise InputError(f"{file}: not the description of embeddings or predictions; name another path") from error
        if key != self.key:
            raise self.foreign(file)
        return all(self.has_part(index) for index in range(self.num_parts))

    def finish(self, record: dict[str, Any]) -> None:
        """Remove what only the computation needed, and say that all is there."""
        remove_tree(self.path / ".layers")
        parts = [{"file": self.part(index).name, "rows": len(self.rows(index))} for index in range(self.num_parts)]
        with to_write(self.path / META) as file:
            write_record(file, {"key": self.key, "rows": self.num_rows, "parts": parts, **record})

    def foreign(self, file: AnyPath) -> InputError:
        return InputError(
            f"{file}: made from another checkpoint, store, list of nodes or options; choose another path, or delete "
            f"{self.path}"
        )


def _is_whole(part: AnyPath, digest: bytes | None) -> bool:
    """Whether a part holds what was written; what an older program wrote without a digest can only be read."""

    def verify() -> None:
        found = digest_of(pq.read_table(part).combine_chunks().to_batches())
        if digest is not None and found.encode() != digest:
            raise InputError(f"{part}: damaged")

    try:
        if isinstance(part, Path):
            verified_once([part.stat()], f"digest {digest!r}", verify)
    except _DAMAGE:
        return False
    return True
