"""Modality retrieval and matching: which picture belongs to this text and its place in the graph, and the reverse.

For a pair (source, target) of modalities a node asks with its state, computed while it and all others that are asked
about show nothing but their source modality; the other nodes show all they have. What is found are the targets' own
embeddings, which know nothing of the graph: otherwise both sides would see the same neighbours, and could meet without
looking at text or picture at all.

Where in the graph the targets of validation and test nodes belong is what is asked: training does not see them at all,
or the regulariser would learn it by heart.
"""

from collections.abc import Mapping
from itertools import permutations

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from optimag_dist.layerwise import LayerwiseForward, Mask
from optimag_dist.models import MultimodalModel
from optimag_dist.store import GraphStore
from optimag_dist.tasks.metrics import Metric
from optimag_dist.tasks.ranking import rank_all, ranking_metrics, retrieval_metrics
from optimag_dist.tasks.splits import NodeSplit, split_nodes
from optimag_dist.tasks.task import Evaluation, Part, Task, TaskContext, TaskHead, TaskOptions, gather, my_share
from optimag_dist.types import Examples, GroupBatch, InputError


class ModalityRetrievalOptions(TaskOptions):
    """Attributes:
    pairs: (source, target) of modalities to train and judge; default: all ordered pairs.
    split: ``stored``, or shares of the nodes that have both modalities of a pair, at random.
    temperature: of the cosines, at the start; it is learned.
    """

    kind: str = "modality_retrieval"
    pairs: tuple[tuple[str, str], ...] | None = Field(None, min_length=1)
    split: NodeSplit = "stored"
    temperature: float = Field(0.07, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _different(self) -> "ModalityRetrievalOptions":
        if self.pairs and (len(set(self.pairs)) < len(self.pairs) or any(a == b for a, b in self.pairs)):
            raise ValueError("pairs must be distinct, each of two modalities")
        return self


class RetrievalHead(TaskHead):
    """Maps of states and of embeddings into a space in which cosines compare them (CLIP, arXiv 2103.00020)."""

    def __init__(self, model: MultimodalModel, pairs: tuple[tuple[str, str], ...], temperature: float) -> None:
        super().__init__()
        self.pairs, self.width = pairs, model.embedding
        self.sources, self._targets = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
        self.queries = nn.ModuleList(nn.Linear(model.hidden, model.embedding) for _ in pairs)
        self.keys = nn.ModuleList(nn.Linear(model.embedding, model.embedding) for _ in self._targets)
        self.log_scale = nn.Parameter(torch.tensor(-float(np.log(temperature))))

    def states(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> dict[str, Tensor]:
        """Source → (A, hidden) states of the group's targets while these show nothing else."""
        rows = torch.arange(len(batch.node_ids), device=batch.node_ids.device)
        others = rows >= batch.num_targets
        return {
            source: model.represent(
                embeddings, batch, {m: mask if m == source else mask & others for m, mask in batch.present.items()}
            )
            for source in self.sources
        }

    def vectors(
        self, states: Mapping[str, Tensor], embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What nodes ask with, pair after pair, and are found by, by target modality: (A, embedding), of unit length, 0
        where a modality is missing. ``states`` are by source, (A, hidden) while the nodes show nothing else; embeddings
        (A, embedding) and whether a node is ``present``, (A,) bool, by modality."""
        asked = [
            normalize(layer(states[source])) * present[source][:, None]
            for layer, (source, _) in zip(self.queries, self.pairs, strict=True)
        ]
        found = {
            m: normalize(layer(embeddings[m])) * present[m][:, None]
            for layer, m in zip(self.keys, self._targets, strict=True)
        }
        return asked, found

    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Cross-entropy of a node's own among the group's, both ways, averaged over the pairs."""
        states = self.states(model, embeddings, batch)
        mine, present = ({m: x[: batch.num_targets] for m, x in of.items()} for of in (embeddings, batch.present))
        asked, found = self.vectors(states, mine, present)
        # As CLIP: beyond 100 training becomes unstable.
        scale = self.log_scale.exp().clamp(max=100)
        total = scale.new_zeros(())
        for query, (source, target) in zip(asked, self.pairs, strict=True):
            both = present[source] & present[target]
            scores = (scale * query @ found[target].mT).masked_fill(~(both[:, None] & both), -1e4)
            own = torch.arange(batch.num_targets, device=scores.device)
            nats = cross_entropy(scores, own, reduction="none") + cross_entropy(scores.mT, own, reduction="none")
            total = total + (nats * both).sum() / 2
        return total / len(self.pairs)


class ModalityRetrieval(Task[RetrievalHead]):
    """Of ``pairs`` of (source, target) modalities; ``train``, ``val`` and ``test`` are (…,) int64 ascending nodes that
    have both modalities of one, and ``judged_on`` (n,) bool the last two. Raises ``InputError`` where the store has one
    modality, lacks one that is named, has no node with both, or no split."""

    options_class = ModalityRetrievalOptions
    metrics = (
        Metric("mrr", "MRR"),
        Metric("recall@1", "recall@1"),
        Metric("recall@5", "recall@5"),
        Metric("recall@10", "recall@10"),
        Metric("median_rank", "median rank", "min", is_share=False),
        Metric("matching", "matching accuracy"),
    )
    val_metrics = ("mrr", "recall@1", "recall@5", "recall@10", "median_rank", "matching")
    monitor = "mrr"

    def __init__(self, store: GraphStore, options: ModalityRetrievalOptions, context: TaskContext) -> None:
        names = list(store.modalities)
        if len(names) < 2:
            raise InputError(
                f"{store.path}: modality retrieval needs two modalities or more, and this store has "
                f"{', '.join(names) or 'none'}; name another under modalities in the schema and run optimag ingest "
                f"again, or make one from an attribute: optimag encode"
            )
        for name in {name for pair in options.pairs or () for name in pair} - set(names):
            raise InputError(f"{store.path}: task.pairs names {name!r}, no modality of this store; it has {names}")
        self.pairs = options.pairs or tuple(permutations(names, 2))
        self.present = {name: store.present(name) for name in names}
        usable = np.logical_or.reduce([self.present[a] & self.present[b] for a, b in self.pairs])
        what = "node with both modalities of a pair"
        self.train, self.val, self.test = split_nodes(store, options.split, usable, seed=context.seed, what=what)
        self._temperature, self._modalities = options.temperature, context.modalities

        self.judged_on = np.zeros(store.num_nodes, bool)
        self.judged_on[np.concatenate([self.val, self.test])] = True

    @property
    def masked(self) -> Mask:
        return {target: self.judged_on for _, target in self.pairs}

    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        return Examples(items, {})

    def head(self, model: MultimodalModel) -> RetrievalHead:
        return RetrievalHead(model, self.pairs, self._temperature)

    @torch.no_grad()
    def evaluate(self, part: Part, head: RetrievalHead, forward: LayerwiseForward) -> Evaluation:
        """Every node asks, among all nodes of the part that have the target modality."""
        nodes = self.val if part == "val" else self.test
        states = forward.masked_states(nodes, [self.mask(source) for source in head.sources]).to(forward.device)
        by_source = {source: states[:, place] for place, source in enumerate(head.sources)}
        asked, found = head.vectors(by_source, forward.encode(nodes), forward.present(nodes))
        by_pair: dict[str, dict[str, float]] = {}
        for (source, target), vectors in zip(self.pairs, asked, strict=True):
            there = self.present[target][nodes]
            asking = np.flatnonzero(there & self.present[source][nodes])
            if len(asking):
                by_pair[f"{source}-to-{target}"] = _rank(vectors, found[target], asking, there)
        metrics = {name: float(np.mean([f[name] for f in by_pair.values()])) for name in self.val_metrics}
        if len(by_pair) > 1:
            metrics |= {f"{pair}/{name}": value for pair, f in by_pair.items() for name, value in f.items()}
        return Evaluation(metrics)

    def mask(self, source: str) -> Mask:
        """What evaluation does not see while it asks with ``source``: all else of whoever is asked about."""
        return {m: self.judged_on for m in self._modalities if m != source}


def _rank(asked: Tensor, found: Tensor, asking: np.ndarray, there: np.ndarray) -> dict[str, float]:
    """The metrics of a pair of modalities, of (k, d) what nodes ask with and are found by, which of them ask, and (k,)
    bool, which of them have the target."""
    mine = asking[my_share(len(asking))]
    place = torch.from_numpy(np.cumsum(there) - 1)
    candidates = found[torch.from_numpy(np.flatnonzero(there))]
    ranks = rank_all(asked[mine], candidates, place[mine], score=lambda q, c: q @ c.mT)
    ranks = torch.cat(gather(ranks.cpu()))
    others = max(1, int(there.sum()) - 1)
    # Matching: the chance that a node's own beats another's, drawn at random.
    matching = 1 - (float(ranks.mean()) - 1) / others
    return {"mrr": ranking_metrics(ranks)["mrr"], **retrieval_metrics(ranks), "matching": matching}
