"""What several tasks' sources make of an epoch, and masked rows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from optimag_dist.sampling import ExampleFn, GroupLoader, LocalSource, MaskedRows, SamplingOptions, SeedBatcher
from optimag_dist.store import GraphStore
from optimag_dist.types import Examples, GroupBatch

OPTIONS = SamplingOptions(batcher="uniform", groups=3, targets=4, group_size=16, fanouts=(3, 2), eval_fanouts=(2, 2))
NUM_NODES = 120
NODES = np.arange(5, 40)  # 12 to a step: 3 steps
EDGES = np.stack([np.arange(100), np.arange(100) + 20], 1)  # 9 steps, a whole number of the nodes' turns
ODD_EDGES = EDGES[:90]  # 8 steps: the nodes' last turn is broken off


def _ask(items: np.ndarray, rng: np.random.Generator) -> Examples:
    """The nodes of the items, which ones, and something drawn."""
    return Examples(np.unique(items), {"items": items, "drawn": rng.random(3)})


def _loader(store: GraphStore, rank: int = 0, world_size: int = 1) -> GroupLoader:
    return GroupLoader(LocalSource(store), None, OPTIONS, seed=4, messages=True, rank=rank, world_size=world_size)


def _sources(*items: np.ndarray) -> list[tuple[SeedBatcher, ExampleFn]]:
    return [(SeedBatcher(each, NUM_NODES, None, OPTIONS, seed=4), _ask) for each in items]


def _tensors(batch: GroupBatch) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(keep)
    return found


def _same(one: GroupBatch, two: GroupBatch) -> bool:
    pairs = zip(_tensors(one), _tensors(two), strict=True)
    return (one.num_targets, one.task) == (two.num_targets, two.task) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("edges", [EDGES, ODD_EDGES])
@pytest.mark.parametrize("nodes_first", [True, False])
def test_an_epoch_is_as_long_as_the_longest_and_the_other_comes_round_again(
    edges: np.ndarray, nodes_first: bool, planted_store: GraphStore
) -> None:
    sources = _sources(NODES, edges) if nodes_first else _sources(edges, NODES)
    short, long = (0, 1) if nodes_first else (1, 0)
    steps = list(_loader(planted_store).epoch(sources, 2))
    assert [batch.step for batch in steps] == list(range(-(-len(edges) // 12)))

    def items(task: int, of: slice) -> list[np.ndarray]:
        groups = [group for batch in steps[of] for group in batch.groups if group.task == task]
        return [item for group in groups for item in group.labels["items"].numpy()]

    def ascending(found: list[np.ndarray]) -> list:
        return sorted(np.array(found).tolist())

    assert ascending(items(long, slice(None))) == edges.tolist()
    turns = [items(short, slice(start, start + 3)) for start in range(0, len(steps), 3)]
    assert len(turns) == 3
    for turn in turns if edges is EDGES else turns[:-1]:
        assert ascending(turn) == NODES.tolist()
    # What is broken off comes once at most.
    assert len(set(map(int, turns[-1]))) == len(turns[-1])
    orders = {tuple(map(int, turn[:20])) for turn in turns}
    assert len(orders) == 3
    for batch in steps:
        of_task = [[len(g.labels["items"]) for g in batch.groups if g.task == task] for task in (0, 1)]
        assert batch.num_items == tuple(map(sum, of_task))
        assert batch.num_groups == len(batch.groups) == 6


def test_what_is_drawn_for_groups_differs_among_tasks_groups_steps_and_turns(planted_store: GraphStore) -> None:
    groups = [group for batch in _loader(planted_store).epoch(_sources(NODES, EDGES), 0) for group in batch.groups]
    assert len({tuple(group.labels["drawn"].tolist()) for group in groups}) == len(groups) == 9 * 6


def test_an_epoch_taken_up_within_goes_on_as_the_whole_one(planted_store: GraphStore) -> None:
    loader, sources = _loader(planted_store), _sources(NODES, EDGES)
    whole, tail = list(loader.epoch(sources, 1)), list(loader.epoch(sources, 1, first_step=4))
    assert [batch.step for batch in tail] == [4, 5, 6, 7, 8]
    for ours, theirs in zip(tail, whole[4:], strict=True):
        assert all(_same(a, b) for a, b in zip(ours.groups, theirs.groups, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_has_groups_of_every_task_in_every_step(world_size: int, planted_store: GraphStore) -> None:
    sources = _sources(NODES, EDGES)
    alone = list(_loader(planted_store).epoch(sources, 0))
    ranks = [list(_loader(planted_store, rank, world_size).epoch(sources, 0)) for rank in range(world_size)]
    for whole, *shares in zip(alone, *ranks, strict=True):
        for share in shares:
            assert {group.task for group in share.groups} == {0, 1}
            assert (share.num_items, share.num_groups) == (whole.num_items, whole.num_groups)
        for task in (0, 1):
            groups = [[group for group in share.groups if group.task == task] for share in shares]
            expected = [group for group in whole.groups if group.task == task]
            # Dealt like cards.
            dealt = [groups[i % world_size][i // world_size] for i in range(len(expected))]
            assert sum(map(len, groups)) == len(expected)
            assert all(_same(a, b) for a, b in zip(dealt, expected, strict=True))


# -- masked rows -------------------------------------------------------------------------------------------------------


def _mask(*nodes: int) -> np.ndarray:
    mask = np.zeros(NUM_NODES, bool)
    mask[list(nodes)] = True
    return mask


def test_exactly_the_nodes_of_the_masks_seem_to_lack_the_modality(planted_store: GraphStore) -> None:
    """In this store nodes 3, 13, … lack their image."""
    rows = LocalSource(planted_store)
    image, more, text = _mask(2, 3, 50), _mask(50, 51), _mask(119)
    hiding = MaskedRows.around(rows, [{"image": image}, {}, {"image": more, "text": text}])
    nodes = np.random.default_rng(0).permutation(np.concatenate([np.arange(NUM_NODES), [50, 50]]))
    for name, hidden in (("image", {2, 3, 50, 51}), ("text", {119})):
        seen, there = rows.features(name, nodes), rows.present(name, nodes)
        gone = np.array([node in hidden for node in nodes.tolist()])
        found = hiding.features(name, nodes)
        assert found[gone].tolist() == np.zeros_like(seen[gone]).tolist()
        assert np.array_equal(found[~gone], seen[~gone])
        assert hiding.present(name, nodes).tolist() == (there & ~gone).tolist()
        # What was given out before and the store itself are as they were.
        assert np.array_equal(rows.features(name, nodes), seen)
        assert np.array_equal(rows.present(name, nodes), there)
    # The masks belong to the tasks.
    assert (image.sum(), more.sum(), text.sum()) == (3, 2, 1)
    assert hiding.topology is planted_store.topology
    assert np.array_equal(hiding.degrees(nodes), rows.degrees(nodes))
    assert all(
        np.array_equal(a, b) for a, b in zip(hiding.neighbours(nodes, 2, 7), rows.neighbours(nodes, 2, 7), strict=True)
    )


def test_where_nothing_is_hidden_the_rows_are_the_rows(planted_store: GraphStore) -> None:
    rows = LocalSource(planted_store)
    assert MaskedRows.around(rows, [{}, {}]) is rows


def test_batches_show_nothing_of_what_is_hidden(planted_store: GraphStore) -> None:
    mask = _mask(*range(0, NUM_NODES, 2))
    rows = MaskedRows.around(LocalSource(planted_store), [{"text": mask}])
    loader = GroupLoader(rows, None, OPTIONS, seed=0, messages=True)
    batches = [group for step in loader.epoch(_sources(NODES), 0) for group in step.groups]
    for batch in batches:
        gone = mask[batch.node_ids.numpy()]
        assert batch.present["text"].tolist() == (~gone).tolist()
        assert not batch.features["text"][torch.from_numpy(gone)].any()
        assert batch.features["text"][torch.from_numpy(~gone)].any(1).all()
