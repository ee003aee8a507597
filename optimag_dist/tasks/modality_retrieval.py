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
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from optimag_dist.models import MultimodalModel
from optimag_dist.store import GraphStore
from optimag_dist.tasks.ranking import gather_ranks, rank_all, ranking_metrics, retrieval_metrics
from optimag_dist.tasks.splits import NodeSplit, split_nodes
from optimag_dist.tasks.task import Evaluation, Part, Setting, Task, TaskHead, TaskOptions, my_share, rank_and_size
from optimag_dist.tasks.vectors import NodeVectors
from optimag_dist.types import Examples, GroupBatch, InputError


class ModalityRetrievalOptions(TaskOptions):
    """Attributes:
    pairs: (source, target) of modalities to train and judge; default: all ordered pairs.
    split: ``stored``, or shares of the nodes that have both modalities of a pair, at random.
    temperature: of the cosines, at the start; it is learned.
    """

    kind: Literal["modality_retrieval"] = "modality_retrieval"
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
        self._sources, self._targets = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
        self.queries = nn.ModuleList(nn.Linear(model.hidden, model.embedding) for _ in pairs)
        self.keys = nn.ModuleList(nn.Linear(model.embedding, model.embedding) for _ in self._targets)
        self.log_scale = nn.Parameter(torch.tensor(-float(np.log(temperature))))

    def vectors(
        self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch, asking: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What the anchors ask with and are found by.

        Args:
            asking: (U,) bool, which nodes show nothing but the source; the anchors among them.

        Returns:
            Pair after pair what they ask with, and by target modality what they are found by: (A, embedding), of unit
            length, 0 where a modality is missing.
        """
        own = {m: mask[: batch.num_anchors] for m, mask in batch.present.items()}
        states = {}
        for source in self._sources:
            present = {m: mask if m == source else mask & ~asking for m, mask in batch.present.items()}
            states[source] = model.represent(embeddings, batch, present)
        asked = [
            normalize(layer(states[source])) * own[source][:, None]
            for layer, (source, _) in zip(self.queries, self.pairs, strict=True)
        ]
        found = {
            m: normalize(layer(embeddings[m][: batch.num_anchors])) * own[m][:, None]
            for layer, m in zip(self.keys, self._targets, strict=True)
        }
        return asked, found

    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Cross-entropy of a node's own among the group's, both ways, averaged over the pairs."""
        rows = torch.arange(len(batch.node_ids), device=batch.node_ids.device)
        asked, found = self.vectors(model, embeddings, batch, rows < batch.num_anchors)
        # As CLIP: beyond 100 training becomes unstable.
        scale = self.log_scale.exp().clamp(max=100)
        total = scale.new_zeros(())
        for query, (source, target) in zip(asked, self.pairs, strict=True):
            both = (batch.present[source] & batch.present[target])[: batch.num_anchors]
            scores = (scale * query @ found[target].mT).masked_fill(~(both[:, None] & both), -1e4)
            own = torch.arange(batch.num_anchors, device=scores.device)
            nats = cross_entropy(scores, own, reduction="none") + cross_entropy(scores.mT, own, reduction="none")
            total = total + (nats * both).sum() / 2
        return total / len(self.pairs)


class ModalityRetrieval(Task[RetrievalHead]):
    """Attributes:
        pairs: (source, target) modalities.
        train, val, test: (…,) int64 ascending nodes that have both modalities of a pair.
        judged_on: (n,) bool, the nodes of the last two.

    Raises:
        InputError: the store has one modality, lacks one that is named, has no node with both, or no split.
    """

    validated = ("mrr", "recall@1", "recall@5", "recall@10", "median_rank", "matching")
    decisive = "mrr"

    def __init__(self, store: GraphStore, options: ModalityRetrievalOptions, setting: Setting) -> None:
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
        self.train, self.val, self.test = split_nodes(store, options.split, usable, seed=setting.seed, what=what)
        self._temperature = options.temperature

        self.judged_on = np.zeros(store.num_nodes, bool)
        self.judged_on[np.concatenate([self.val, self.test])] = True

    @property
    def hidden(self) -> Mapping[str, np.ndarray]:
        return {target: self.judged_on for _, target in self.pairs}

    @property
    def hidden_in_evaluation(self) -> Mapping[str, np.ndarray]:
        # Whoever asks shows its source, which may be another pair's target.
        return {}

    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        return Examples(items, {})

    def head(self, model: MultimodalModel) -> RetrievalHead:
        return RetrievalHead(model, self.pairs, self._temperature)

    def evaluation(self, part: Part) -> "_Evaluation":
        return _Evaluation(self, self.val if part == "val" else self.test)


class _Evaluation(Evaluation[RetrievalHead]):
    """Every node asks, among all nodes of the part that have the target modality."""

    def __init__(self, task: ModalityRetrieval, nodes: np.ndarray) -> None:
        self.nodes = nodes
        self._task = task
        self._judged_on = torch.from_numpy(task.judged_on)
        self._asked = [NodeVectors(nodes) for _ in task.pairs]
        self._found = {target: NodeVectors(nodes) for _, target in task.pairs}

    def update(
        self, model: MultimodalModel, head: RetrievalHead, embeddings: Mapping[str, Tensor], batch: GroupBatch
    ) -> None:
        self._judged_on = self._judged_on.to(batch.node_ids.device)
        asked, found = head.vectors(model, embeddings, batch, self._judged_on[batch.node_ids])
        for store, vectors in zip(self._asked, asked, strict=True):
            store.put(batch, vectors)
        for target, vectors in found.items():
            self._found[target].put(batch, vectors)

    def compute(self, head: RetrievalHead) -> dict[str, float]:
        size = rank_and_size()[1]
        like = head.log_scale.new_empty(head.width, 0)
        found = {target: vectors.of_all_ranks(like) for target, vectors in self._found.items()}
        by_pair: dict[str, dict[str, float]] = {}
        for (source, target), vectors in zip(self._task.pairs, self._asked, strict=True):
            asked = vectors.of_all_ranks(like)
            there = self._task.present[target][self.nodes]
            asking = np.flatnonzero(there & self._task.present[source][self.nodes])
            if not len(asking):
                continue
            mine = asking[my_share(len(asking))]
            place = torch.from_numpy(np.cumsum(there) - 1)
            candidates = found[target][torch.from_numpy(np.flatnonzero(there))]
            ranks = rank_all(asked[mine], candidates, place[mine], score=lambda q, c: q @ c.mT)
            ranks = gather_ranks(ranks, size)
            others = max(1, int(there.sum()) - 1)
            by_pair[f"{source}-to-{target}"] = {
                "mrr": ranking_metrics(ranks)["mrr"],
                **retrieval_metrics(ranks),
                # The chance that a node's own beats another's, drawn at random.
                "matching": 1 - (float(ranks.mean()) - 1) / others,
            }
        figures = {name: float(np.mean([f[name] for f in by_pair.values()])) for name in self._task.validated}
        if len(by_pair) > 1:
            figures |= {f"{pair}/{name}": value for pair, f in by_pair.items() for name, value in f.items()}
        return figures
