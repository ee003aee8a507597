"""Kept mass of a run's nodes, and the nodes that lie at its two ends, with their neighbours, for people to look at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from optimag_dist.report.html import image_uri, shortened, spread
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
    """Kept mass of one regularised variant: modality → (S, n) float32 of S ``seeds``, row v that of node v of the
    store; NaN where a node lacks the modality or has no neighbour to be judged by."""

    variant: str
    seeds: tuple[int, ...]
    values: Mapping[str, np.ndarray]

    @property
    def unjudged(self) -> int:
        """Nodes without a value in any modality."""
        return int(np.logical_and.reduce([np.isnan(values).any(axis=0) for values in self.values.values()]).sum())


@dataclass(frozen=True)
class NodeView:
    """What a person sees of a node: ``id`` always, the rest where the store has it; ``image`` is a data URI."""

    id: str
    name: str | None
    label: str | None
    image: str | None


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
    """A node among some of its neighbours, of which there are ``degree``; ``labelled`` of them have a label,
    ``same_label`` the node's own (None where it has none)."""

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
    """The two ends in every modality of one variant."""

    variant: str
    seeds: tuple[int, ...]
    ends: tuple[Ends, ...]


def read_kept_mass(run: Run) -> list[KeptMass]:
    """Kept mass of every variant that has exported any. ``InputError``: seeds of one variant were trained on stores of
    different size, or a file is damaged."""
    masses = []
    for variant in run.variants:
        paths = {fit.seed: fit.directory / "kept_mass.parquet" for fit in run.of(variant)}
        tables = {seed: _read(path) for seed, path in paths.items() if path.exists()}
        sizes = {table.num_rows for table in tables.values()}
        if len(sizes) > 1:
            raise InputError(
                f"{run.directory / variant}: the kept_mass.parquet files of its seeds have {sorted(sizes)} rows, so "
                "the store changed between them; train all seeds again under another name"
            )
        if tables:
            names = next(iter(tables.values())).column_names
            values = {name: np.stack([table.column(name).to_numpy() for table in tables.values()]) for name in names}
            masses.append(KeptMass(variant, tuple(tables), values))
    return masses


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read([name for name in file.schema_arrow.names if name != "id"])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it to have a report without it") from error


def check_store(store: GraphStore, run: Run) -> None:
    """Raise ``InputError`` unless ``store`` is the one that the fits with kept mass were trained on."""
    for fit in run.finished:
        path = fit.directory / "model.pt"
        exported = (fit.directory / "kept_mass.parquet").exists()
        if exported and path.exists() and checkpoint.load(path, torch.device("cpu")).get("store") != store.content_hash:
            raise InputError(f"{store.path}: the store has changed since {fit.variant} seed {fit.seed} was trained")


def gallery(mass: KeptMass, store: GraphStore) -> Gallery:
    """The cards of the nodes at both ends of ``mass``; ``InputError`` where ``store`` has another number of nodes."""
    num_nodes = next(iter(mass.values.values())).shape[1]
    if num_nodes != store.num_nodes:
        raise InputError(
            f"{store.path}: the store has {store.num_nodes:,} nodes and the kept mass of {mass.variant} "
            f"{num_nodes:,}; it has changed since the training"
        )
    means = {name: values.mean(axis=0, dtype=np.float64) for name, values in mass.values.items()}
    chosen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, mean in means.items():
        candidates = np.flatnonzero(np.isfinite(mean))
        order = candidates[np.argsort(mean[candidates], kind="stable")]
        chosen[name] = order[:_DISTRUSTED], order[_DISTRUSTED:][::-1][:_TRUSTED]
    nodes = np.unique(np.concatenate([part for parts in chosen.values() for part in parts]))
    cards = dict(zip(nodes.tolist(), _cards(nodes, mass, means, store), strict=True))
    ends = tuple(
        Ends(name, float(np.nanmedian(means[name])), *(tuple(cards[v] for v in part.tolist()) for part in parts))
        for name, parts in chosen.items()
        if len(parts[0])
    )
    return Gallery(mass.variant, mass.seeds, ends)


def _cards(nodes: np.ndarray, mass: KeptMass, means: Mapping[str, np.ndarray], store: GraphStore) -> Iterator[Card]:
    neighbours = _neighbours(store, nodes)
    shown = [spread(every, _NEIGHBOURS) for every in neighbours]
    views = _views(store, np.unique(np.concatenate([nodes, *shown]).astype(np.int64)))
    ranks = {name: np.sort(mean[np.isfinite(mean)]) for name, mean in means.items()}
    labels = np.full(store.num_nodes, -1) if store.labels is None else store.labels
    for node, some, every in zip(nodes.tolist(), shown, neighbours, strict=True):
        theirs, own = labels[every], labels[node]
        yield Card(
            node=views[node],
            masses=tuple(_node_mass(name, mass.values[name][:, node], ranks[name]) for name in mass.values),
            neighbours=tuple(views[v] for v in some),
            degree=len(every),
            same_label=int(np.count_nonzero(theirs == own)) if own >= 0 else None,
            labelled=int(np.count_nonzero(theirs >= 0)),
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


def _views(store: GraphStore, nodes: np.ndarray) -> dict[int, NodeView]:
    texts = [name for name, kind in store.attributes.items() if kind == "text"]
    images = [name for name, kind in store.attributes.items() if kind == "image"]
    text = "name" if "name" in texts else texts[0] if texts else None
    names: Sequence[str | None] = store.attribute(text, nodes) if text else [None] * len(nodes)
    contents: Sequence[bytes | None] = store.attribute(images[0], nodes) if images else [None] * len(nodes)
    labels = [store.classes[i] if i >= 0 else None for i in store.labels[nodes]] if store.labels is not None else None
    return {
        node: NodeView(str(user_id), shortened(name or "", _LONGEST_NAME) or None, label, image_uri(content))
        for node, user_id, name, label, content in zip(
            nodes.tolist(), store.ids(nodes), names, labels or [None] * len(nodes), contents, strict=True
        )
    }
