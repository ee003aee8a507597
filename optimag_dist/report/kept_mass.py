"""Kept mass of a run's nodes, and the nodes that lie at its two ends, with their neighbours, for a person to judge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from optimag_dist.report.pictures import picture_uri
from optimag_dist.report.run import Run
from optimag_dist.store import GraphStore
from optimag_dist.train import checkpoint
from optimag_dist.types import InputError

_DISTRUSTED = 8
_TRUSTED = 4
_NEIGHBOURS = 6
_LONGEST_NAME = 120


@dataclass(frozen=True)
class KeptMass:
    """Kept mass of one regularised variant.

    Attributes:
        seeds: whose fits have finished, S of them.
        values: modality → (S, n) float32, row v that of node v of the store; NaN where a node lacks the modality.
    """

    variant: str
    seeds: tuple[int, ...]
    values: Mapping[str, np.ndarray]

    @property
    def num_nodes(self) -> int:
        return next(iter(self.values.values())).shape[1]


@dataclass(frozen=True)
class NodeView:
    """What a person sees of a node: ``id`` always, the rest where the store has it; ``picture`` is a data URI."""

    id: str
    name: str | None
    label: str | None
    picture: str | None


@dataclass(frozen=True)
class NodeMass:
    """One node's kept mass in one modality: mean, least and most over seeds, and the share of nodes that keep less."""

    modality: str
    mean: float
    low: float
    high: float
    below: float


@dataclass(frozen=True)
class Card:
    """A node among its neighbours.

    Attributes:
        neighbours: some of them.
        degree: how many there are.
        same_label: how many of the labelled neighbours share the node's label; None when it has none.
        labelled: how many neighbours have a label.
    """

    node: NodeView
    masses: tuple[NodeMass, ...]
    neighbours: tuple[NodeView, ...]
    degree: int
    same_label: int | None
    labelled: int


@dataclass(frozen=True)
class Ends:
    """The nodes of least and of most kept mass in one modality; ``median`` is over nodes, of their mean over seeds."""

    modality: str
    median: float
    distrusted: tuple[Card, ...]
    trusted: tuple[Card, ...]


@dataclass(frozen=True)
class Gallery:
    """The two ends in every modality of one variant; ``isolated`` nodes have no neighbours and are left out."""

    variant: str
    seeds: tuple[int, ...]
    isolated: int
    ends: tuple[Ends, ...]


def read_kept_mass(run: Run) -> list[KeptMass]:
    """Kept mass of every variant that has exported any.

    Raises:
        InputError: seeds of one variant were trained on stores of different size, or a file is damaged.
    """
    masses = []
    for variant in run.variants:
        paths = {fit.seed: fit.directory / "kept_mass.parquet" for fit in run.of(variant)}
        paths = {seed: path for seed, path in paths.items() if path.exists()}
        if not paths:
            continue
        tables = [_read(path) for path in paths.values()]
        names = tables[0].column_names
        sizes = {table.num_rows for table in tables}
        if len(sizes) > 1:
            raise InputError(
                f"{run.directory / variant}: the kept_mass.parquet files of its seeds have {sorted(sizes)} rows, so "
                "the store changed between them; train all seeds again under another name"
            )
        values = {name: np.stack([table.column(name).to_numpy() for table in tables]) for name in names}
        masses.append(KeptMass(variant, tuple(paths), values))
    return masses


def _read(path: Path) -> pa.Table:
    """All columns but the ids."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read([name for name in file.schema_arrow.names if name != "id"])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it to have a report without it") from error


def check_store(store: GraphStore, run: Run) -> None:
    """Make sure that ``store`` is the one that the fits with kept mass were trained on.

    Raises:
        InputError: it has changed since.
    """
    for fit in run.finished:
        path = fit.directory / "model.pt"
        exported = (fit.directory / "kept_mass.parquet").exists()
        if exported and path.exists() and checkpoint.load(path, torch.device("cpu")).get("store") != store.content_hash:
            raise InputError(f"{store.path}: the store has changed since {fit.variant} seed {fit.seed} was trained")


def gallery(mass: KeptMass, store: GraphStore) -> Gallery:
    """The cards of the nodes at both ends of ``mass``.

    Raises:
        InputError: ``store`` has another number of nodes.
    """
    if mass.num_nodes != store.num_nodes:
        raise InputError(
            f"{store.path}: the store has {store.num_nodes:,} nodes and the kept mass of {mass.variant} "
            f"{mass.num_nodes:,}; it has changed since the training"
        )
    linked = _linked(store)
    means = {name: values.mean(axis=0, dtype=np.float64) for name, values in mass.values.items()}
    chosen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, mean in means.items():
        candidates = np.flatnonzero(linked & np.isfinite(mean))
        order = candidates[np.argsort(mean[candidates], kind="stable")]
        low = order[:_DISTRUSTED]
        chosen[name] = low, order[len(low) :][::-1][:_TRUSTED]
    nodes = np.unique(np.concatenate([part for parts in chosen.values() for part in parts]))
    cards = dict(zip(nodes.tolist(), _cards(nodes, mass, means, store), strict=True))
    ends = tuple(
        Ends(name, float(np.nanmedian(means[name])), *(tuple(cards[v] for v in part.tolist()) for part in parts))
        for name, parts in chosen.items()
        if len(parts[0])
    )
    return Gallery(mass.variant, mass.seeds, int(np.count_nonzero(~linked)), ends)


def _linked(store: GraphStore) -> np.ndarray:
    """(n,) bool: has a neighbour, along or against an arc."""
    linked = np.diff(store.topology.indptr) > 0
    if store.directed:
        linked[store.topology.indices] = True
    return linked


def _cards(nodes: np.ndarray, mass: KeptMass, means: Mapping[str, np.ndarray], store: GraphStore) -> Iterator[Card]:
    neighbours = _neighbours(store, nodes)
    # Spread over the whole list, for the first few ids may be all of one kind.
    shown = [
        all_[np.linspace(0, len(all_) - 1, min(len(all_), _NEIGHBOURS)).round().astype(np.int64)] for all_ in neighbours
    ]
    seen = np.unique(np.concatenate([nodes, *shown]))
    views = dict(zip(seen.tolist(), _views(store, seen), strict=True))
    ranks = {name: np.sort(mean[np.isfinite(mean)]) for name, mean in means.items()}
    for node, some, every in zip(nodes.tolist(), shown, neighbours, strict=True):
        same_label, labelled = _label_agreement(store, node, every)
        yield Card(
            node=views[node],
            masses=tuple(_node_mass(name, mass.values[name][:, node], ranks[name]) for name in mass.values),
            neighbours=tuple(views[v] for v in some.tolist()),
            degree=len(every),
            same_label=same_label,
            labelled=labelled,
        )


def _node_mass(modality: str, values: np.ndarray, ranks: np.ndarray) -> NodeMass:
    mean = float(values.mean(dtype=np.float64))
    below = float(np.searchsorted(ranks, mean)) / max(1, len(ranks))
    return NodeMass(modality, mean, float(values.min()), float(values.max()), below)


def _neighbours(store: GraphStore, nodes: np.ndarray) -> list[np.ndarray]:
    """Of each of ``nodes`` ((k,) ascending): ids of its neighbours, along and against arcs."""
    indptr, indices = store.topology.indptr, store.topology.indices
    into = [np.asarray(indices[indptr[v] : indptr[v + 1]], dtype=np.int64) for v in nodes]
    if not store.directed:
        return into
    arcs = np.flatnonzero(np.isin(indices, nodes))
    sources, targets = indices[arcs], np.searchsorted(indptr, arcs, side="right") - 1
    return [np.union1d(own, targets[sources == v]) for v, own in zip(nodes, into, strict=True)]


def _label_agreement(store: GraphStore, node: int, neighbours: np.ndarray) -> tuple[int | None, int]:
    if store.labels is None:
        return None, 0
    theirs, own = store.labels[neighbours], store.labels[node]
    labelled = int(np.count_nonzero(theirs >= 0))
    return (int(np.count_nonzero(theirs == own)) if own >= 0 else None), labelled


def _views(store: GraphStore, nodes: np.ndarray) -> Iterator[NodeView]:
    texts = [name for name, kind in store.attributes.items() if kind == "text"]
    images = [name for name, kind in store.attributes.items() if kind == "image"]
    text = "name" if "name" in texts else texts[0] if texts else None
    names: Sequence[str | None] = store.attribute(text, nodes) if text else [None] * len(nodes)
    pictures: Sequence[bytes | None] = store.attribute(images[0], nodes) if images else [None] * len(nodes)
    labels = store.labels[nodes] if store.labels is not None else np.full(len(nodes), -1)
    for user_id, name, picture, label in zip(store.ids(nodes), names, pictures, labels.tolist(), strict=True):
        yield NodeView(
            str(user_id), _shortened(name), store.classes[label] if label >= 0 else None, picture_uri(picture)
        )


def _shortened(text: str | None) -> str | None:
    if text is None or len(text) <= _LONGEST_NAME:
        return text or None
    return text[: _LONGEST_NAME - 1].rstrip() + "…"
