"""Link prediction: which of many nodes is a node linked with?

Trained on the edges of a store from which others are held out (``optimag split``); an edge carries no message in the
group that it is an example of. A step's loss is the cross-entropy of an edge's target among negatives, both ways round.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.models import MultimodalModel
from optimag_dist.sampling.neighbours import append_nodes
from optimag_dist.store import GraphStore
from optimag_dist.store.csr import contains
from optimag_dist.store.link_split import check_no_leak
from optimag_dist.tasks.metrics import Metric
from optimag_dist.tasks.negatives import no_edges, ppr_hard_negatives
from optimag_dist.tasks.ranking import rank_all, rank_among, ranking_metrics
from optimag_dist.tasks.task import Evaluation, Part, Task, TaskContext, TaskHead, TaskOptions, gather, my_share
from optimag_dist.types import CSR, Examples, GroupBatch, InputError

DecoderName = Literal["dot", "mlp"]
# Numbers that the table of all pairs may hold at once.
_ENTRIES = 1 << 20
# Products with fewer columns end in other kernels for the last rows (seen on AMD EPYC, widths 1 and 5 to 11).
_WHOLE = 16


class DotDecoder(nn.Module):
    """h_u · h_v."""

    def forward(self, h_u: Tensor, h_v: Tensor) -> Tensor:
        """(…, d) and (…, d), broadcast → (…)."""
        return (h_u * h_v).sum(-1)

    def score_all(self, h_q: Tensor, h_c: Tensor) -> Tensor:
        """Of all pairs: (b, d), (c, d) → (b, c)."""
        return h_q @ h_c.mT


class MLPDecoder(nn.Module):
    """A network with one hidden layer of ``hidden`` = d units on h_u ∘ h_v, as the link predictors of OGB's examples
    (arXiv 2005.00687)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, h_u: Tensor, h_v: Tensor) -> Tensor:
        """(…, d) and (…, d), broadcast → (…)."""
        return self.layers(h_u * h_v).squeeze(-1)

    def score_all(self, h_q: Tensor, h_c: Tensor) -> Tensor:
        """Of all pairs: (b, d), (c, d) → (b, c). Without gradients, memory is a few (c, d) or 2²⁰ numbers."""
        at_once = max(1, _ENTRIES // max(1, h_c.numel()))
        return torch.cat([self._score_alike(some[:, None] * h_c) for some in h_q.split(at_once)])

    def _score_alike(self, pairs: Tensor) -> Tensor:
        """(…, d) → (…), rounded alike wherever a pair stands."""
        hidden, activation, out = (cast(nn.Linear, layer) for layer in self.layers)
        return _product(activation(_product(pairs, hidden)), out).squeeze(-1)


def _product(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer`` of ``x``, computed at a width at which every row is rounded alike."""
    width = layer.out_features
    return (x @ pad(layer.weight, (0, 0, 0, -width % _WHOLE)).mT)[..., :width] + layer.bias


Decoder = DotDecoder | MLPDecoder


def make_decoder(name: DecoderName, hidden: int) -> Decoder:
    """The decoder called ``name`` for states of ``hidden`` numbers."""
    return DotDecoder() if name == "dot" else MLPDecoder(hidden)


_QUERIES = 1024


class LinkPredictionOptions(TaskOptions):
    """Attributes:
    decoder: score of two nodes: ``dot`` product of their states, or ``mlp`` on the elementwise product.
    negatives: ``uniform`` nodes, the same for all edges of a group; ``in_batch``, the group's other targets; ``ppr``,
        for each edge's ends nodes of high PPR that are not their neighbours (hard), half of all, and uniform ones.
    num_negatives: per group (``uniform``) or per edge and direction (``ppr``).
    rank_all: at the end, test links are also ranked among all nodes (``mrr_all``, ``hits@10_all``), the node's other
        neighbours left out; their cost grows with links times nodes.
    """

    kind: str = "link_prediction"
    decoder: DecoderName = "dot"
    negatives: Literal["uniform", "in_batch", "ppr"] = "uniform"
    num_negatives: int = Field(64, ge=2)
    rank_all: bool = True

    @property
    def needs_ppr(self) -> bool:
        return self.negatives == "ppr"


class LinkHead(TaskHead):
    """A linear map of a node's state, and the decoder of two of these."""

    def __init__(self, model: MultimodalModel, decoder: DecoderName) -> None:
        super().__init__()
        self.project = nn.Linear(model.hidden, model.hidden)
        self.decoder = make_decoder(decoder, model.hidden)

    def vectors(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """(A, hidden) what is decoded."""
        return self.project(model.represent(embeddings, batch))

    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Cross-entropy of the target among itself and the negatives, the mean of both directions of an edge."""
        h, t = self.vectors(model, embeddings, batch), batch.labels
        source = h[t["sources"]]
        if t["negatives"].ndim == 1:
            others = self.decoder.score_all(source, h[t["negatives"]])
        else:
            others = self.decoder(source[:, None], h[t["negatives"]])
        true = self.decoder(source, h[t["targets"]])
        scores = torch.cat([true[:, None], others.masked_fill(~t["allowed"], -torch.inf)], 1)
        return (scores.logsumexp(1) - true).sum() / 2


class LinkPrediction(Task[LinkHead]):
    """Trained on ``train``, (T, 2) int64, the store's edges, the smaller node first. Raises ``InputError`` where the
    store has no held-out links, or one of them is still among its edges."""

    options_class = LinkPredictionOptions
    metrics = (
        Metric("mrr", "MRR"),
        Metric("hits@1", "Hits@1"),
        Metric("hits@10", "Hits@10"),
        Metric("mrr_all", "MRR, all nodes"),
        Metric("hits@10_all", "Hits@10, all nodes"),
    )
    val_metrics = ("mrr", "hits@1", "hits@10")
    monitor = "mrr"

    def __init__(self, store: GraphStore, options: LinkPredictionOptions, context: TaskContext) -> None:
        if store.links is None:
            raise InputError(
                f"{store.path}: link prediction needs held-out links to choose and judge a model by, and this store "
                f"has none; make one that has: optimag split {store.path} {store.path}-links"
            )
        check_no_leak(store)
        self._topology, self._num_nodes = store.topology, store.num_nodes
        self._links, self._options, self._ppr = store.links, options, context.ppr
        # Links that are to be predicted are not known here: that they were never drawn as negatives would tell of them.
        self._is_edge = partial(contains, store.topology)
        rows = np.repeat(np.arange(store.num_nodes), np.diff(store.topology.indptr))
        once = rows < store.topology.indices
        self.train = np.stack([rows[once], store.topology.indices[once]], 1).astype(np.int64)

    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        queries = np.concatenate([items, items[:, ::-1]])
        count = self._options.num_negatives
        if self._options.negatives == "in_batch":
            negatives = queries[:, 1]
        elif self._options.negatives == "uniform":
            # Ends of the group's edges may be drawn too: in a small graph there is hardly another node.
            negatives = rng.choice(self._num_nodes, min(count, self._num_nodes), replace=False)
        else:
            if self._ppr is None:
                raise InputError("task.negatives=ppr needs a PPR artefact; compute one with: optimag ppr STORE")
            hard = ppr_hard_negatives(self._ppr, queries[:, 0], self._is_edge, count // 2, rng)
            uniform = rng.integers(0, self._num_nodes, (len(queries), count - count // 2))
            negatives = np.concatenate([hard, uniform], 1)
        of_each = np.broadcast_to(negatives, (len(queries), negatives.shape[-1]))
        # In order of occurrence: where transport cannot take all targets, it takes the edges' ends.
        everyone = np.concatenate([queries.ravel(), negatives.ravel()])
        targets, rows = append_nodes(np.empty(0, np.int64), everyone)
        ends = rows[: queries.size].reshape(-1, 2)
        labels = {
            "sources": ends[:, 0].copy(),
            "targets": ends[:, 1].copy(),
            "negatives": rows[queries.size :].reshape(negatives.shape),
            "allowed": no_edges(queries[:, 0], of_each, self._is_edge),
        }
        return Examples(targets, labels, excluded_edges=items)

    def head(self, model: MultimodalModel) -> LinkHead:
        return LinkHead(model, self._options.decoder)

    @torch.no_grad()
    def evaluate(self, part: Part, head: LinkHead, forward: LayerwiseForward) -> Evaluation:
        nodes = self.nodes(part)
        vectors = head.project(forward.states(nodes).to(forward.device))
        return Evaluation(self.rank(part, vectors, head.decoder))

    def nodes(self, part: Part) -> np.ndarray:
        """(k,) int64 ascending nodes that come up in a part's links, or are ranked among."""
        if self._ranks_all(part):
            return np.arange(self._num_nodes)
        queries = getattr(self._links, part)
        return np.unique(np.concatenate([queries.sources, queries.targets, queries.negatives.ravel()]))

    def rank(self, part: Part, vectors: Tensor, decoder: Decoder) -> dict[str, float]:
        """The metrics of a part's links, given the (k, d) vectors of its :meth:`nodes`."""
        nodes, all_queries = self.nodes(part), getattr(self._links, part)
        queries = all_queries[my_share(len(all_queries))]

        def rows(ids: np.ndarray) -> Tensor:
            return torch.from_numpy(np.searchsorted(nodes, ids))

        ranks = [torch.empty(0, dtype=torch.float64, device=vectors.device)]
        for start in range(0, len(queries), _QUERIES):
            some = queries[start : start + _QUERIES]
            candidates = np.concatenate([some.targets[:, None], some.negatives], 1)
            scores = decoder(vectors[rows(some.sources)][:, None], vectors[rows(candidates)])
            ranks.append(rank_among(scores[:, 0], scores[:, 1:]))
        metrics = ranking_metrics(torch.cat(gather(torch.cat(ranks).cpu())))
        if self._ranks_all(part):
            sources = rows(queries.sources)
            score, known = decoder.score_all, self.known(queries.sources)
            true = rows(queries.targets)
            among_all = rank_all(vectors[sources], vectors, true, score=score, known=known, exclude=sources)
            of_all = ranking_metrics(torch.cat(gather(among_all.cpu())))
            metrics |= {f"{name}_all": of_all[name] for name in ("mrr", "hits@10")}
        return metrics

    def _ranks_all(self, part: Part) -> bool:
        return part == "test" and self._options.rank_all

    def known(self, sources: np.ndarray) -> CSR:
        """All neighbours of each source, held-out ones as well."""
        rows, columns = [], []
        for starts, stops, others in (
            (self._topology.indptr[sources], self._topology.indptr[sources + 1], self._topology.indices),
            *(
                (np.searchsorted(q.sources, sources), np.searchsorted(q.sources, sources, side="right"), q.targets)
                for q in (self._links.val, self._links.test)
            ),
        ):
            sizes = stops - starts
            rows.append(np.repeat(np.arange(len(sources)), sizes))
            columns.append(others[np.repeat(stops - np.cumsum(sizes), sizes) + np.arange(sizes.sum())])
        row, column = np.concatenate(rows), np.concatenate(columns)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(sources)))])
        return CSR(indptr, column[np.argsort(row, kind="stable")])
