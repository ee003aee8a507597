"""What fits generated for their test nodes, beside the references: some nodes of a run, for people to look at.

A fit of such a task leaves ``outputs.parquet``, of several tasks ``outputs-TASK.parquet``: ``id``, ``reference`` and
``output``, texts or images, and where images were compared with those trained on, the ``nearest`` of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from optimag_dist.report.html import image_uri, shortened, spread
from optimag_dist.report.run import Run

_ROWS = 12
_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Sample:
    """A text, or an image as a data URI."""

    text: str = ""
    image: str | None = None


@dataclass(frozen=True)
class SampleRow:
    """One node: its reference, and variant → what that made of it; None, or no entry, where there is nothing."""

    id: str
    reference: Sample | None
    outputs: Mapping[str, Sample | None]
    nearest: Mapping[str, Sample | None]


@dataclass(frozen=True)
class Samples:
    """Some nodes' outputs of the variants that do the same, of ``total`` nodes that have any. ``task`` is empty where
    runs have one; those of ``variants`` that name the nearest training image are ``nearest``."""

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
                # Texts and images of one name are of different tasks.
                kinds = [schema.field(name).type for name in ("reference", "output")]
                images = [pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds]
                key = (path.stem.removeprefix("outputs").removeprefix("-"), *images)
                groups.setdefault(key, {}).setdefault(seed, {})[fit.variant] = path
    return [_samples(key[0], *next(iter(by_seed.items()))) for key, by_seed in groups.items()]


def _samples(task: str, seed: int, paths: Mapping[str, Path]) -> Samples:
    ids = {variant: pq.read_table(path, columns=["id"])["id"].to_pylist() for variant, path in paths.items()}
    first = next(iter(ids.values()))
    everywhere = set(first).intersection(*ids.values())
    chosen = spread([each for each in first if each in everywhere] or first, _ROWS)
    found = {
        variant: {row["id"]: row for row in pq.read_table(path, filters=[("id", "in", chosen)]).to_pylist()}
        for variant, path in paths.items()
        if chosen
    }
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


def _sample(value: str | bytes | None) -> Sample | None:
    if isinstance(value, bytes):
        uri = image_uri(value)
        return Sample(image=uri) if uri else Sample("not a readable image")
    return None if value is None else Sample(shortened(value, _LONGEST_TEXT))
