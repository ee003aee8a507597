"""What fits leave behind: one JSON line per epoch, the same for TensorBoard, a result each, and tables of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.tensorboard import SummaryWriter

from optimag_dist.files import atomic, writing
from optimag_dist.integrity import parse_record, read_record
from optimag_dist.types import InputError

RESULT, DIVERGED = "result.json", "diverged.json"


class FitLog:
    """Appends to ``metrics.jsonl`` and ``tensorboard/`` of a fit; use as a context manager. Records from
    ``first_epoch`` on, of a life that was cut short, are dropped."""

    def __init__(self, directory: Path, first_epoch: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        kept = [r for r in read_records(self.path) if r["epoch"] < first_epoch]
        with atomic(self.path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        with writing(self.path):
            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_epoch)

    def __enter__(self) -> "FitLog":
        return self

    def __exit__(self, *error: object) -> None:
        with writing(self.path):
            self._file.close()
            self._board.close()

    def write(self, record: dict[str, Any]) -> None:
        """One epoch's numbers; ``record["epoch"]`` counts from 0."""
        with writing(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            for name, value in record.items():
                if name != "epoch":
                    self._board.add_scalar(name, value, record["epoch"])


def read_result(directory: Path) -> dict[str, Any] | None:
    """The ``result.json`` of a fit that has ended well, the ``diverged.json`` of one that did not, which has
    ``diverged``, what happened, in the place of metrics; None where there is neither."""
    for path in (directory / RESULT, directory / DIVERGED):
        if path.exists():
            remedy = "delete it, and --resume ends the fit from its checkpoint"
            result = read_record(path, remedy)
            if "variant" not in result:
                raise InputError(f"{path}: damaged (it names no variant); {remedy}")
            return result
    return None


def in_one_line(result: Mapping[str, Any]) -> str:
    """What a fit ended with, its monitor first; or that, and why, it did not."""
    if "diverged" in result:
        return f"diverged: {result['diverged']}"
    monitor = f"test/{result.get('decisive')}"
    tested = sorted((name for name in result if name.startswith("test/")), key=lambda name: name != monitor)
    metrics = [f"{name.removeprefix('test/')} {result[name]:.3f}" for name in tested]
    return "  ".join([*metrics, f"epoch {result['best_epoch'] + 1}/{result['epochs']}"])


def read_records(path: Path) -> list[dict[str, Any]]:
    """The epochs in a ``metrics.jsonl``; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = parse_record(line)
            if not isinstance(record.get("epoch"), int):
                raise ValueError("it names no epoch")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: damaged ({error}); delete the line, which leaves its epoch out of the curves"
            ) from error
        records.append(record)
    return records


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A Parquet table of ``rows``, with a column for each of their keys; what a row lacks is null."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with atomic(path) as temporary:
        pq.write_table(pa.table({c: of_one_type([row.get(c) for row in rows]) for c in columns}), temporary)


def of_one_type(values: list[Any]) -> list[Any]:
    """What is searched or varied may be a number here and a word there; a column cannot."""
    if all(v is None or isinstance(v, bool) for v in values):
        return values
    if any(isinstance(v, bool | str) for v in values):
        return [None if v is None else str(v) for v in values]
    if any(isinstance(v, float) for v in values):
        return [None if v is None else float(v) for v in values]
    return values
