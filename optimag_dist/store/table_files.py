"""One file of a user's table: Parquet, delimited text or JSON lines, as batches of rows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from optimag_dist.store.bad_rows import reading
from optimag_dist.store.table_columns import check_columns, plain_type
from optimag_dist.store.text_tables import DelimitedFile, JsonLinesFile, LinesFile, TextStream
from optimag_dist.types import InputError

_BATCH_ROWS = 16_384
# Of wide rows fewer are in memory at a time.
_BATCH_BYTES = 1 << 26
_JSON = (".jsonl", ".ndjson", ".json")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# In this order the header is tried; whichever gives all columns that are wanted is it.
_SEPARATORS = (",", ";", "\t", "|")
KINDS = ".parquet, .csv, .tsv or .jsonl (text also with .gz or .zst behind it)"


class TableFile(Protocol):
    """One file of a table.

    Attributes:
        path: of it.
        kind: ``parquet``, ``text`` or ``json``; all files of a table are of one kind.
        num_rows: of it.
        types: wanted column → its type, without extensions and dictionaries.
    """

    path: Path
    kind: str
    num_rows: int
    types: Mapping[str, pa.DataType]

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns ``names``, from the first row to the last."""
        ...


def open_table_file(path: Path, wanted: Mapping[str, str], several: bool) -> TableFile | None:
    """The file at ``path`` with the columns ``wanted`` (what names it → column).

    None if it is empty and one of ``several``.

    Raises:
        InputError: an unknown ending, damaged, no header, or a column is missing or there twice.
    """
    ending, compression = _endings(path)
    if ending == ".parquet" and compression is None:
        return _ParquetFile(path, wanted)
    if not is_table(path):
        raise InputError(f"{path}: needed a table that ends in {KINDS}, got the ending {''.join(path.suffixes[-2:])!r}")
    if several and path.stat().st_size == 0:
        return None
    stream = TextStream(path, compression)
    if ending in _JSON:
        return JsonLinesFile(stream, wanted)
    return DelimitedFile(stream, wanted, ("\t",) if ending == ".tsv" else _SEPARATORS)


def open_lines(path: Path, column: str) -> LinesFile:
    """The file at ``path`` as the one ``column`` of its lines."""
    return LinesFile(TextStream(path, _endings(path)[1]), column)


def is_table(path: Path) -> bool:
    """Whether the ending of ``path`` is that of a table with named columns."""
    ending, compression = _endings(path)
    return ending in (".csv", ".tsv", *_JSON) or (ending == ".parquet" and compression is None)


def _endings(path: Path) -> tuple[str, str | None]:
    """The ending before that of a compression, in lower case, and the compression."""
    endings = ["", *(ending.lower() for ending in path.suffixes)]
    compression = _COMPRESSIONS.get(endings[-1])
    return endings[-1 if compression is None else -2], compression


class _ParquetFile:
    """One Parquet file, mapped."""

    kind = "parquet"

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        self.path = path
        with reading(path):
            self._file = pq.ParquetFile(path, memory_map=True)
            schema = self._file.schema_arrow
        check_columns(path, schema.names, wanted)
        metadata = self._file.metadata
        self.num_rows = metadata.num_rows
        self.types: Mapping[str, pa.DataType] = {
            column: plain_type(schema.field(column).type) for column in wanted.values()
        }
        bytes_ = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        self._batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * self.num_rows // max(bytes_, 1)))

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(batch_size=self._batch_rows, columns=list(names))
