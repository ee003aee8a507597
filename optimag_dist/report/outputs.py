"""What fits generated for their test nodes, beside the references: some nodes of a run, for a person to judge.

A fit of such a task leaves ``outputs.parquet``, of several tasks ``outputs-TASK.parquet``: ``id``, ``reference`` and
``output``, texts or pictures, and where pictures were compared with those trained on, the ``nearest`` of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optimag_dist.report.pictures import picture_uri
from optimag_dist.report.run import Run

_ROWS = 12
_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Sample:
    """A text, or a picture as a data URI."""

    text: str = ""
    picture: str | None = None


@dataclass(frozen=True)
class SampleRow:
    """One node: its reference, and variant → what that made of it; None, or no entry, where there is nothing."""

    id: str
    reference: Sample | None
    outputs: Mapping[str, Sample | None]
    nearest: Mapping[str, Sample | None]


@dataclass(frozen=True)
class Samples:
    """Some nodes' outputs of the variants that do the same.

    Attributes:
        task: its name; empty where runs have one.
        total: nodes that there are outputs for.
        nearest: those of ``variants`` that name the nearest training picture.
    """

    task: str
    seed: int
    variants: tuple[str, ...]
    nearest: tuple[str, ...]
    total: int
    rows: tuple[SampleRow, ...]


def read_samples(run: Run) -> list[Samples]:
    """Of every task that generates, and the first seed that has finished one: at most twelve nodes, evenly spread."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Path]]] = {}
    for seed in run.config.seeds:
        for fit in run.finished:
            for path in sorted(fit.directory.glob("outputs*.parquet")) if fit.seed == seed else ():
                schema = pq.read_schema(path)
                # Texts and pictures of one name are of different tasks.
                pictures = [_holds_bytes(schema.field(name).type) for name in ("reference", "output")]
                key = (path.stem.removeprefix("outputs").removeprefix("-"), *pictures)
                groups.setdefault(key, {}).setdefault(seed, {})[fit.variant] = path
    return [_samples(key[0], *next(iter(by_seed.items()))) for key, by_seed in groups.items()]


def _holds_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _samples(task: str, seed: int, paths: Mapping[str, Path]) -> Samples:
    ids = {variant: pq.read_table(path, columns=["id"])["id"].to_pylist() for variant, path in paths.items()}
    first = next(iter(ids.values()))
    everywhere = set(first).intersection(*ids.values())
    candidates = [each for each in first if each in everywhere] or first
    chosen = [
        candidates[i] for i in np.linspace(0, len(candidates) - 1, min(len(candidates), _ROWS)).round().astype(int)
    ]
    found = {variant: _rows_of(path, chosen) for variant, path in paths.items()}
    nearest = tuple(variant for variant, path in paths.items() if "nearest" in pq.read_schema(path).names)
    rows = []
    for each in chosen:
        theirs = {variant: rows_of[each] for variant, rows_of in found.items() if each in rows_of}
        rows.append(
            SampleRow(
                str(each),
                _sample(next(iter(theirs.values()))["reference"]),
                {variant: _sample(row["output"]) for variant, row in theirs.items()},
                {variant: _sample(theirs[variant]["nearest"]) for variant in nearest if variant in theirs},
            )
        )
    return Samples(task, seed, tuple(paths), nearest, len(first), tuple(rows))


def _rows_of(path: Path, ids: list[Any]) -> dict[Any, dict[str, Any]]:
    """Id → the row, of those of ``ids`` that there are."""
    return {row["id"]: row for row in pq.read_table(path, filters=[("id", "in", ids)]).to_pylist()} if ids else {}


def _sample(value: str | bytes | None) -> Sample | None:
    if isinstance(value, bytes):
        picture = picture_uri(value)
        return Sample(picture=picture) if picture else Sample("not a readable picture")
    if value is None or len(value) <= _LONGEST_TEXT:
        return None if value is None else Sample(value)
    return Sample(value[: _LONGEST_TEXT - 1].rstrip() + "…")
