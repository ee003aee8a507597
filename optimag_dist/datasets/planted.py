"""Made-up graphs of which it is known which nodes of which modality conflict with the graph.

A stochastic block model, degree-corrected if wished (Karrer & Newman 2011): classes of equal size, edges within a class
with a given probability. Per modality every class has a centre, and a node's features are its class's centre plus
noise, except that a known share of the nodes, drawn anew for every modality, has another class's: these conflict.

The tables are written in pieces: memory grows by some 50 bytes per node and 32 per edge, features not counted.
"""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import Field, model_validator

from optimag_dist.options import Options, dump_options
from optimag_dist.types import InputError

_PIECE = 65_536
# What random numbers are drawn for, each from a generator of its own.
_CLASSES, _EDGES, _CENTRES, _CONFLICTS, _FEATURES, _WEIGHTS = range(6)


class PlantedOptions(Options):
    """A graph with planted conflicts.

    Attributes:
        nodes: n.
        classes: of equal expected size.
        degree: expected number of neighbours, before repeated edges and self loops are dropped.
        exponent: of the power law of expected degrees, above 2; default: every node expects the same.
        homophily: probability that an edge stays within its class.
        modalities: M, named ``m1`` … ``mM``.
        width: numbers per node and modality.
        noise: standard deviation around a centre; centres themselves are standard normal.
        conflicts: share of nodes in conflict, one number or one per modality.
        missing: share of nodes that lack a modality, drawn anew for each.
        seed: of everything.
    """

    nodes: int = Field(2000, ge=2, le=10**9)
    classes: int = Field(8, ge=2)
    degree: float = Field(6.0, gt=0, allow_inf_nan=False)
    exponent: float | None = Field(None, gt=2)
    homophily: float = Field(0.7, ge=0, le=1)
    modalities: int = Field(2, ge=1)
    width: int = Field(32, ge=1)
    noise: float = Field(0.5, ge=0, allow_inf_nan=False)
    conflicts: float | tuple[float, ...] = 0.3
    missing: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "PlantedOptions":
        if len(self.shares) != self.modalities:
            raise ValueError(f"conflicts lists {len(self.shares)} shares; needed one, or one per modality")
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"conflicts={self.conflicts}: needed shares from 0 to 1")
        if round(self.nodes * self.degree / 2) < 1:
            raise ValueError(f"nodes={self.nodes} of degree={self.degree} have no edge; raise either")
        if self.degree >= self.nodes:
            raise ValueError(f"degree={self.degree:g} of nodes={self.nodes}: nobody has that many neighbours")
        if self.classes > self.nodes:
            raise ValueError(f"classes={self.classes} is more than nodes={self.nodes}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities' names."""
        return tuple(f"m{i + 1}" for i in range(self.modalities))

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of nodes in conflict, per modality."""
        return self.conflicts if isinstance(self.conflicts, tuple) else (self.conflicts,) * self.modalities


def write_planted(out: str | Path, options: PlantedOptions) -> Path:
    """Write tables and ``schema.yaml`` for ``optimag ingest`` into the folder ``out``.

    ``nodes.parquet``: ``id``, ``label``, per modality m ``x_m``, and the truth, ``conflict_m``. ``edges.parquet``:
    ``src``, ``dst``, and per modality whether the ends' classes differ in it, ``conflict_m``. ``planted.yaml``: the
    options. The folder appears complete or not at all.

    Raises:
        InputError: ``out`` is there already, or cannot be written.
    """
    target = Path(out).resolve()
    if target.exists():
        raise InputError(f"{out}: is there already; give another folder or remove it first")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        shown = _shown_classes(options)
        _write_nodes(temporary / "nodes.parquet", options, shown)
        _write_edges(temporary / "edges.parquet", options, shown)
        (temporary / "schema.yaml").write_text(yaml.safe_dump(_schema(options), sort_keys=False), encoding="utf-8")
        dump_options(options, temporary / "planted.yaml")
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"{out}: the graph cannot be written there: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def read_truth(folder: Path) -> dict[str, np.ndarray]:
    """Modality → (n,) bool, which nodes of the planted graph in ``folder`` conflict with it, in the order of the ids.

    Raises:
        InputError: there is no planted graph.
    """
    file = folder / "nodes.parquet"
    if not (folder / "planted.yaml").is_file() or not file.is_file():
        raise InputError(f"{folder}: no planted graph; optimag data make writes one")
    columns = [name for name in pq.read_schema(file).names if name.startswith("conflict_")]
    table = pq.read_table(file, columns=columns)
    return {name.removeprefix("conflict_"): table[name].to_numpy() for name in columns}


def _rng(options: PlantedOptions, *key: int) -> np.random.Generator:
    return np.random.default_rng((options.seed, *key))


def _classes_of_nodes(options: PlantedOptions) -> np.ndarray:
    return _rng(options, _CLASSES).integers(options.classes, size=options.nodes, dtype=np.int32)


def _shown_classes(options: PlantedOptions) -> np.ndarray:
    """(1 + M, n) int32: the nodes' classes, and those that each modality shows."""
    truth = _classes_of_nodes(options)
    shown = [truth]
    for m, share in enumerate(options.shares):
        rng = _rng(options, _CONFLICTS, m)
        other = (truth + 1 + rng.integers(options.classes - 1, size=options.nodes, dtype=np.int32)) % options.classes
        shown.append(np.where(rng.random(options.nodes) < share, other, truth).astype(np.int32))
    return np.stack(shown)


def _write_nodes(path: Path, options: PlantedOptions, shown: np.ndarray) -> None:
    # Of no fixed size: pyarrow before 26 does not read such lists back from Parquet where some are missing.
    features = pa.list_(pa.float32())
    fields = [("id", pa.int64()), ("label", pa.int32())]
    fields += [(f"x_{name}", features) for name in options.names]
    fields += [(f"conflict_{name}", pa.bool_()) for name in options.names]
    schema = pa.schema(fields)
    centres = [_rng(options, _CENTRES, m).normal(size=(options.classes, options.width)) for m in range(len(shown) - 1)]
    with pq.ParquetWriter(path, schema) as writer:
        for piece, start in enumerate(range(0, options.nodes, _PIECE)):
            rows = slice(start, min(start + _PIECE, options.nodes))
            columns: list[pa.Array] = [pa.array(np.arange(rows.start, rows.stop)), pa.array(shown[0, rows])]
            for m, centre in enumerate(centres):
                rng = _rng(options, _FEATURES, m, piece)
                x = centre[shown[m + 1, rows]]
                x = (x + options.noise * rng.normal(size=x.shape)).astype(np.float32)
                absent = pa.array(rng.random(len(x)) < options.missing)
                columns.append(pa.FixedSizeListArray.from_arrays(x.ravel(), options.width, mask=absent).cast(features))
            columns += [pa.array(shown[m + 1, rows] != shown[0, rows]) for m in range(len(centres))]
            writer.write_table(pa.table(columns, schema=schema))


def _write_edges(path: Path, options: PlantedOptions, shown: np.ndarray) -> None:
    fields = [("src", pa.int64()), ("dst", pa.int64())]
    fields += [(f"conflict_{name}", pa.bool_()) for name in options.names]
    schema = pa.schema(fields)
    source, target = _edges(options, shown[0])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(source), _PIECE):
            u, v = source[start : start + _PIECE], target[start : start + _PIECE]
            differ = [pa.array(of_m[u] != of_m[v]) for of_m in shown[1:]]
            writer.write_table(pa.table([pa.array(u), pa.array(v), *differ], schema=schema))


def _edges(options: PlantedOptions, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends (m,) of distinct edges, source < target."""
    n = options.nodes
    weights = np.ones(n)
    if options.exponent is not None:
        weights = _rng(options, _WEIGHTS).random(n) ** (-1 / (options.exponent - 1))
        weights = np.minimum(weights, n**0.5)
    # Nodes sorted by class: a class is a stretch, and a node in it is found by its share of the summed weights.
    order = np.argsort(classes, kind="stable")
    ends = np.concatenate(([0.0], np.cumsum(weights[order])))
    first = np.searchsorted(classes[order], np.arange(options.classes + 1))
    found = [_draw_edges(rng, count, options, classes, order, ends, first) for rng, count in _edge_pieces(options)]
    codes = np.unique(np.concatenate(found))
    return codes // n, codes % n


def _edge_pieces(options: PlantedOptions) -> Iterator[tuple[np.random.Generator, int]]:
    count = round(options.nodes * options.degree / 2)
    for piece, start in enumerate(range(0, count, _PIECE)):
        yield _rng(options, _EDGES, piece), min(_PIECE, count - start)


def _draw_edges(
    rng: np.random.Generator,
    count: int,
    options: PlantedOptions,
    classes: np.ndarray,
    order: np.ndarray,
    ends: np.ndarray,
    first: np.ndarray,
) -> np.ndarray:
    """Edges as numbers source · n + target."""

    def draw(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        at = ends[low] + rng.random(count) * (ends[high] - ends[low])
        return order[np.clip(np.searchsorted(ends, at, side="right") - 1, low, high - 1)]

    n = options.nodes
    u = draw(np.zeros(count, np.int64), np.full(count, n))
    other = (classes[u] + 1 + rng.integers(options.classes - 1, size=count)) % options.classes
    goal = np.where(rng.random(count) < options.homophily, classes[u], other)
    # A small graph may have a class without members.
    goal = np.where(first[goal + 1] > first[goal], goal, classes[u])
    v = draw(first[goal], first[goal + 1])
    low, high = np.minimum(u, v).astype(np.int64), np.maximum(u, v).astype(np.int64)
    return (low * n + high)[low != high]


def _schema(options: PlantedOptions) -> dict[str, object]:
    return {
        "name": "planted",
        "nodes": {"file": "nodes.parquet", "id": "id", "label": "label"},
        "modalities": {name: {"column": f"x_{name}"} for name in options.names},
        "edges": {"file": "edges.parquet", "source": "src", "target": "dst"},
    }
