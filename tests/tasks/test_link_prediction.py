"""Link prediction: what only messages tell is learned, no message tells the answer, and figures are those of numpy.

The graph is made of cliques, and features are noise: whom a node is linked with is known by whom its neighbours are
linked with and by nothing else. As no two strangers share a clique, a model can be perfect.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import GroupLoader, LocalSource, SeedBatcher
from optimag_dist.store import GraphStore, LinkQueries, LinkSplitOptions, split_links
from optimag_dist.store.derive import EdgeChanges, apply_changes
from optimag_dist.tasks.link_prediction import DotDecoder, LinkPrediction, LinkPredictionOptions, MLPDecoder
from optimag_dist.tasks.task import TaskContext
from optimag_dist.train.parts import Fit, Parts, Worker
from optimag_dist.train.validation import check_input
from optimag_dist.types import Examples, GroupBatch, InputError

from .tiny_stores import (
    batch_of,
    both_ways,
    configure,
    evaluated,
    first_groups,
    fit,
    make_ppr,
    make_store,
    messages_of,
    quietly,
    start,
)

CLIQUES, SIZE = 12, 8
NEGATIVES = ("uniform", "in_batch", "ppr")
LINKS = {"kind": "link_prediction", "num_negatives": 16}


def cliques(
    folder: Path, count: int, size: int, modalities: dict[str, int], *, negatives: int, missing: float = 0.0
) -> GraphStore:
    """Cliques of random nodes; features are noise, of which a share is missing."""
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(count * size, width)) for name, width in modalities.items()}
    for x in features.values():
        x[rng.random(len(x)) < missing] = np.nan
    of_clique = rng.permutation(count * size).reshape(count, size).tolist()
    edges = [edge for nodes in of_clique for edge in combinations(nodes, 2)]
    whole = make_store(folder, features, edges)
    return split_links(whole, folder / "links", LinkSplitOptions(val=0.1, test=0.2, negatives=negatives), say=quietly)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    folder = tmp_path_factory.mktemp("links") / "cliques"
    return cliques(folder, CLIQUES, SIZE, {"text": 6, "image": 6}, negatives=50)


@pytest.fixture(scope="module")
def ppr(store: GraphStore, tmp_path_factory: pytest.TempPathFactory) -> PPRArtefact:
    return make_ppr(store, tmp_path_factory.mktemp("ppr") / "artefact")


def task_of(store: GraphStore, ppr: PPRArtefact | None = None, **options: Any) -> LinkPrediction:
    setting = TaskContext(tuple(store.modalities), 0, ppr)
    return LinkPrediction(store, LinkPredictionOptions(**{"num_negatives": 16, **options}), setting)


def adjacency_of(store: GraphStore) -> np.ndarray:
    dense = np.zeros((store.num_nodes, store.num_nodes), bool)
    dense[np.repeat(np.arange(store.num_nodes), np.diff(store.topology.indptr)), store.topology.indices] = True
    return dense


def held_out(store: GraphStore) -> set[tuple[int, int]]:
    parts = (store.links.val, store.links.test)
    return {arc for part in parts for arc in zip(part.sources.tolist(), part.targets.tolist(), strict=True)}


# -- it learns ---------------------------------------------------------------------------------------------------------


def test_what_only_messages_tell_is_learned_and_lost_without_them(store: GraphStore, tmp_path: Path) -> None:
    """Three seeds: .97 to .99 against .31 to .37; a node drawn at random has 1/r at a mean of .09 among 51."""
    sections = {"train": {"epochs": 25, "eval_every": 5}, "model": {"hidden": 32}}
    sage = fit(configure(LINKS, **sections), store, tmp_path / "sage")
    sections["model"]["backbone"] = "mlp"
    mlp = fit(configure(LINKS, **sections), store, tmp_path / "mlp")
    assert sage["test/mrr"] >= 0.93
    assert sage["test/hits@10"] >= 0.97
    assert sage["test/mrr_all"] >= 0.9
    assert mlp["test/mrr"] <= 0.5
    assert mlp["test/hits@10"] <= 0.9
    assert sage["decisive"] == "mrr"


# -- no message tells the answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_store_whose_edges_still_have_a_held_out_link_is_refused(
    part: str, store: GraphStore, tmp_path: Path
) -> None:
    queries = getattr(store.links, part)
    link = np.sort([queries.sources[5], queries.targets[5]])
    planted = apply_changes(store, EdgeChanges(link[None], np.empty((0, 2), np.int64)), _made(tmp_path / "leaking"))
    assert planted.topology.num_arcs == store.topology.num_arcs + 2
    with pytest.raises(InputError, match=f"leak: the held-out {part} link .* is an edge of the graph"):
        task_of(planted)
    with pytest.raises(InputError, match="leak"):
        check_input(planted, configure(LINKS), 0)
    with pytest.raises(InputError, match="leak"):
        fit(configure(LINKS), planted, tmp_path / "fit")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _uncut(task: LinkPrediction) -> Any:
    """What the task asks, but for the edges that are to be cut."""

    def ask(items: np.ndarray, rng: np.random.Generator) -> Examples:
        examples = task.examples(items, rng)
        return Examples(examples.targets, examples.labels)

    return ask


def _groups(store: GraphStore, ppr: PPRArtefact, task: LinkPrediction, ask: Any, fanout: int) -> Iterator[GroupBatch]:
    config = configure(LINKS, sampling={"fanouts": [fanout, fanout]})
    loader = GroupLoader(LocalSource(store), ppr, config.sampling, seed=0, messages=True)
    batcher = SeedBatcher(task.train, store.num_nodes, None, config.sampling, seed=0, fill=False)
    for step in loader.epoch([(batcher, ask)], 0):
        yield from step.groups


def _asked(group: GroupBatch) -> np.ndarray:
    """(E, 2) ids of the edges that are the group's examples, as sources and targets say."""
    nodes = group.node_ids.numpy()
    ends = np.stack([nodes[group.labels[side].numpy()] for side in ("sources", "targets")], 1)
    assert np.array_equal(ends[: len(ends) // 2], ends[len(ends) // 2 :, ::-1])
    return ends[: len(ends) // 2]


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("fanout", [3, -1])
def test_no_batch_passes_a_message_along_its_own_edges(
    fanout: int, negatives: str, store: GraphStore, ppr: PPRArtefact
) -> None:
    task = task_of(store, ppr, negatives=negatives)
    cut = _groups(store, ppr, task, task.examples, fanout)
    leaking = _groups(store, ppr, task, _uncut(task), fanout)
    full_degrees = adjacency_of(store).sum(1)
    trained = []
    for group, whole in zip(cut, leaking, strict=True):
        edges = _asked(group)
        trained.append(edges)
        answers, nodes = both_ways(edges), group.node_ids.numpy()
        # Left alone the batch leaks, and this is how it is seen.
        assert messages_of(whole) & answers
        assert not messages_of(group) & answers
        assert messages_of(group) == messages_of(whole) - answers
        assert torch.equal(group.node_ids, whole.node_ids)
        own = np.bincount(edges.ravel(), minlength=store.num_nodes)
        assert group.degrees.tolist() == (full_degrees - own)[nodes].tolist()
    assert np.sort(np.concatenate(trained), 1).tolist() != task.train.tolist()
    assert sorted(np.sort(np.concatenate(trained), 1).tolist()) == task.train.tolist()


@pytest.mark.parametrize("backbone", ["sage", "gcn"])
def test_vectors_are_those_of_the_graph_without_the_groups_edges(
    backbone: str, store: GraphStore, tmp_path: Path
) -> None:
    """Also degrees, by which GCN normalises, know nothing of the edges asked for."""
    parts = start(configure(LINKS, model={"backbone": backbone}), store)
    parts.step_loss.eval()
    (head,), model = parts.heads.values(), parts.model
    group = first_groups(parts)[0]
    gone = np.sort(_asked(group), 1)
    without = apply_changes(store, EdgeChanges(np.empty((0, 2), np.int64), gone), _made(tmp_path / "without"))
    targets = group.node_ids[: group.num_targets].numpy()
    forward = LayerwiseForward(model, LocalSource(without), store.num_nodes, (-1, -1))
    with torch.no_grad():
        ours = head.vectors(model, model.encode(group.features), group)
        theirs = head.project(forward.states(targets))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_evaluation_passes_no_message_along_held_out_links(store: GraphStore) -> None:
    """A part's metrics are made of states of the store's own graph, in which these links are not."""

    class Listening(LocalSource):
        def neighbours(self, nodes: np.ndarray, fanout: int, key: int) -> tuple[np.ndarray, np.ndarray]:
            indptr, drawn = super().neighbours(nodes, fanout, key)
            messages.update(zip(np.repeat(nodes, np.diff(indptr)).tolist(), drawn.tolist(), strict=True))
            return indptr, drawn

    messages: set[tuple[int, int]] = set()
    parts = Parts(Fit("default", 0, configure(LINKS), Path("nowhere")), store, None, Worker(), Listening(store))
    assert len(held_out(store)) == 2 * (round(0.1 * 336) + round(0.2 * 336))
    for part in ("val", "test"):
        evaluated(parts, part)
    assert len(messages) > 300
    assert not messages & held_out(store)


# -- negatives and loss ------------------------------------------------------------------------------------------------


def _loss64(decoder: nn.Module, h: Tensor, group: GroupBatch, adjacency: np.ndarray) -> float:
    """The loss's formula, query by query: −log of the true score's share among it and the strangers' scores."""
    decoder, h = deepcopy(decoder).double(), h.double()
    nodes, t = group.node_ids.numpy(), {name: x.numpy() for name, x in group.labels.items()}
    total = 0.0
    for query, (source, target) in enumerate(zip(t["sources"], t["targets"], strict=True)):
        others = t["negatives"] if t["negatives"].ndim == 1 else t["negatives"][query]
        strangers = [o for o in others if o != source and not adjacency[nodes[source], nodes[o]]]
        scores = torch.stack([decoder(h[source], h[other]) for other in [target, *strangers]])
        total -= scores.log_softmax(0)[0].item()
    return total / 2


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_what_is_allowed_is_no_neighbour_and_not_the_node(negatives: str, store: GraphStore, ppr: PPRArtefact) -> None:
    task, adjacency = task_of(store, ppr, negatives=negatives), adjacency_of(store)
    edges = np.random.default_rng(0).permutation(task.train)[:20]
    for draw in range(5):
        examples = task.examples(edges, np.random.default_rng(draw))
        targets, t = examples.targets, examples.labels
        sources, others = targets[t["sources"]], targets[t["negatives"]]
        assert np.array_equal(np.stack([sources, targets[t["targets"]]], 1), np.concatenate([edges, edges[:, ::-1]]))
        assert np.array_equal(np.sort(targets), np.unique(np.concatenate([edges.ravel(), others.ravel()])))
        # Where transport cannot take all targets, it takes the edges' ends.
        ends = np.unique(edges)
        assert np.array_equal(np.sort(targets[: len(ends)]), ends)
        assert others.shape == {"uniform": (16,), "in_batch": (40,), "ppr": (40, 16)}[negatives]
        others = np.broadcast_to(others, (40, others.shape[-1]))
        strangers = ~adjacency[sources[:, None], others] & (sources[:, None] != others)
        assert t["allowed"].dtype == bool
        assert np.array_equal(t["allowed"], strangers)
        # Not an empty question: some are allowed, and some are not.
        assert 0.5 < strangers.mean() < 1
        if negatives == "uniform":
            assert len(set(others[0])) == 16
        elif negatives == "in_batch":
            assert np.array_equal(t["negatives"], t["targets"])
        else:
            # The first half are near, as many as there are: of the same clique, where the link is held out.
            assert strangers[:, :8].all()
            near = ppr.submatrix(np.arange(store.num_nodes)) > 0
            for source, drawn in zip(sources, others[:, :8], strict=True):
                free = near[source] & ~adjacency[source]
                assert len(set(drawn[near[source, drawn]])) == min(8, free.sum() - 1)


@pytest.mark.parametrize("decoder", ["dot", "mlp"])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_the_loss_is_the_cross_entropy_among_strangers(
    negatives: str, decoder: str, store: GraphStore, ppr: PPRArtefact
) -> None:
    parts = start(configure({**LINKS, "negatives": negatives, "decoder": decoder}), store, ppr)
    (head,), model = parts.heads.values(), parts.model
    # With torch's own weights all scores are much alike.
    nn.init.normal_(head.project.weight, std=0.5)
    for group in first_groups(parts):
        with torch.no_grad():
            embeddings = model.encode(group.features)
            found = head.loss(model, embeddings, group).item()
            h = head.vectors(model, embeddings, group)
            assert h.shape == (group.num_targets, 16)
            expected = _loss64(head.decoder, h, group, adjacency_of(store))
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_graph_smaller_than_its_groups_still_has_negatives(tmp_path: Path) -> None:
    """Every node is an end of an edge of the group."""
    tiny = cliques(tmp_path / "tiny", 2, 5, {"x": 2}, negatives=4)
    examples = task_of(tiny).examples(task_of(tiny).train, np.random.default_rng(0))
    assert sorted(examples.targets.tolist()) == list(range(10))
    assert examples.labels["negatives"].shape == (10,)
    assert examples.labels["allowed"].sum(1).min() >= 5


# -- figures -----------------------------------------------------------------------------------------------------------


def _rank(true: float, others: np.ndarray) -> float:
    return 1 + (others > true).sum() + (others == true).sum() / 2


def _brute_force(score: np.ndarray, queries: LinkQueries, known: np.ndarray | None) -> dict[str, float]:
    """Of a dense (n, n) matrix of scores; ``known`` (n, n) asks for ranks among all but known neighbours."""
    ranks, all_ranks = [], []
    for source, target, negatives in zip(queries.sources, queries.targets, queries.negatives, strict=True):
        ranks.append(_rank(score[source, target], score[source, negatives]))
        if known is not None:
            left = [v for v in range(len(score)) if v not in (source, target) and not known[source, v]]
            all_ranks.append(_rank(score[source, target], score[source, left]))
    figures = {"mrr": (1 / np.array(ranks)).mean()}
    figures |= {f"hits@{k}": (np.array(ranks) <= k).mean() for k in (1, 10)}
    if known is not None:
        figures |= {"mrr_all": (1 / np.array(all_ranks)).mean(), "hits@10_all": (np.array(all_ranks) <= 10).mean()}
    return figures


@pytest.mark.parametrize("decoder", ["dot", "mlp"])
@pytest.mark.parametrize(("part", "rank_all"), [("val", True), ("test", True), ("test", False)])
def test_figures_are_those_of_the_dense_scores(part: str, rank_all: bool, decoder: str, store: GraphStore) -> None:
    """Vectors of small integers have exact scores, and ties."""
    table = torch.from_numpy(np.random.default_rng(1).integers(-2, 3, (store.num_nodes, 4))).float()
    made = MLPDecoder(4) if decoder == "mlp" else DotDecoder()
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()
    task = task_of(store, decoder=decoder, rank_all=rank_all)
    with torch.no_grad():
        found = task.rank(part, table[torch.from_numpy(task.nodes(part))], made)
        score = deepcopy(made).double()(table[:, None].double(), table.double()).numpy()
    known = adjacency_of(store)
    for u, v in held_out(store):
        known[u, v] = True
    with_all = rank_all and part == "test"
    expected = _brute_force(score, getattr(store.links, part), known if with_all else None)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0.02 < found["mrr"] < 0.9


def test_a_fits_metrics_are_those_of_its_vectors(store: GraphStore) -> None:
    parts = start(configure(LINKS), store)
    parts.step_loss.eval()
    (head,), model = parts.heads.values(), parts.model
    nn.init.normal_(head.project.weight, std=0.5)
    batch = batch_of(parts, np.arange(store.num_nodes))
    with torch.no_grad():
        h = head.vectors(model, model.encode(batch.features), batch).double()
    expected = _brute_force((h @ h.mT).numpy(), store.links.val, None)
    assert evaluated(parts, "val") == pytest.approx(expected, rel=1e-4)


# -- other graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modalities", "missing"), [({"text": 3, "image": 2}, 0.4), ({"text": 3, "image": 2, "sound": 4}, 0.2)]
)
def test_missing_modalities_and_a_third_one_are_no_obstacle(
    modalities: dict[str, int], missing: float, tmp_path: Path
) -> None:
    store = cliques(tmp_path / "cliques", 6, 6, modalities, negatives=8, missing=missing)
    assert all(not store.present(name).all() for name in modalities)
    config = configure({**LINKS, "negatives": "ppr"}, regulariser={"weight": 1.0}, train={"epochs": 1})
    result = fit(config, store, tmp_path / "fit", make_ppr(store, tmp_path / "ppr"))
    assert all(0 < result[f"test/{name}"] <= 1 for name in ("mrr", "hits@10", "mrr_all", "hits@10_all"))
    assert set(torch.load(tmp_path / "fit" / "model.pt", weights_only=True)["widths"]) == set(modalities)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_store_without_links_is_told_which_command_makes_them(planted_store: GraphStore) -> None:
    with pytest.raises(InputError, match=f"needs held-out links .*: optimag split {planted_store.path} "):
        task_of(planted_store)


def test_hard_negatives_without_ppr_name_the_command(store: GraphStore, tmp_path: Path) -> None:
    config = configure({**LINKS, "negatives": "ppr"})
    assert config.needs_ppr
    assert not configure(LINKS).needs_ppr
    with pytest.raises(InputError, match=r"needs a PPR artefact.*optimag ppr"):
        fit(config, store, tmp_path / "fit")
    task = task_of(store, negatives="ppr")
    with pytest.raises(InputError, match=r"task\.negatives=ppr needs a PPR artefact.*optimag ppr"):
        task.examples(task.train[:4], np.random.default_rng(0))


def test_fewer_edges_than_groups_are_refused_at_the_door(store: GraphStore) -> None:
    with pytest.raises(InputError, match=r"training edges cannot fill sampling.groups=500 .* hold out fewer"):
        check_input(store, configure(LINKS, sampling={"groups": 500}), 0)
