"""Seed groups: pure functions of (seed, epoch, step), every node anchored once per epoch, PPR-local."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.options import validate_options
from optimag_dist.sampling import SamplingOptions, SeedBatcher
from optimag_dist.sampling.batcher import draw_others
from optimag_dist.types import InputError


class RingPrior:
    """A stand-in for a PPR artefact: on a ring, node i holds itself and its two neighbours at each side."""

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes

    def rows(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        offsets, weights = np.array([0, 1, -1, 2, -2]), np.array([0.5, 0.2, 0.2, 0.05, 0.05], np.float32)
        columns = (nodes[:, None] + offsets) % self.num_nodes
        return np.arange(len(nodes) + 1) * 5, columns.ravel(), np.tile(weights, len(nodes))


def _groups(batcher: SeedBatcher, epoch: int) -> list:
    return [
        batcher.group(targets, key=(epoch, step, index))
        for step, groups in enumerate(batcher.items(epoch))
        for index, targets in enumerate(groups)
    ]


@settings(deadline=None, max_examples=40)
@given(
    num_nodes=st.integers(6, 80),
    share=st.floats(0.1, 1.0),
    groups=st.integers(1, 4),
    targets=st.integers(2, 8),
    extra=st.integers(1, 30),
    batcher=st.sampled_from(["ppr", "uniform"]),
    epoch=st.integers(0, 3),
)
def test_an_epoch_anchors_every_node_once_in_groups_of_distinct_seeds(
    num_nodes: int, share: float, groups: int, targets: int, extra: int, batcher: str, epoch: int
) -> None:
    nodes = np.arange(max(groups, int(share * num_nodes)))
    options = SamplingOptions(batcher=batcher, groups=groups, targets=targets, group_size=targets + extra)
    made = _groups(SeedBatcher(nodes, num_nodes, RingPrior(num_nodes), options, seed=7), epoch)

    assert np.array_equal(np.sort(np.concatenate([g.targets for g in made])), nodes)
    for group in made:
        assert 1 <= group.num_targets <= targets
        assert len(np.unique(group.seeds)) == len(group.seeds) == min(options.group_size, num_nodes)
        assert group.seeds.min() >= 0
        assert group.seeds.max() < num_nodes


def test_groups_depend_on_seed_epoch_and_step_alone() -> None:
    nodes, prior = np.arange(40), RingPrior(60)
    options = SamplingOptions(groups=2, targets=5, group_size=20)
    first, again = (_groups(SeedBatcher(nodes, 60, prior, options, seed=3), 1) for _ in range(2))
    assert all(np.array_equal(a.seeds, b.seeds) for a, b in zip(first, again, strict=True))
    for other in (
        _groups(SeedBatcher(nodes, 60, prior, options, seed=4), 1),
        _groups(SeedBatcher(nodes, 60, prior, options, seed=3), 2),
    ):
        assert any(not np.array_equal(a.targets, b.targets) for a, b in zip(first, other, strict=True))


def test_a_group_takes_its_anchors_strongest_neighbours_then_theirs_then_random_nodes() -> None:
    prior = RingPrior(100)
    targets = np.array([10, 11])
    near = SeedBatcher(targets, 100, prior, SamplingOptions(groups=1, targets=2, group_size=4), seed=0)
    # 9 is one step from 10 and two from 11 (.2 + .05), 12 likewise; 8 and 13 have .05.
    assert near.group(targets, key=(0, 0, 0)).seeds.tolist() == [10, 11, 9, 12]
    wide = SeedBatcher(targets, 100, prior, SamplingOptions(groups=1, targets=2, group_size=30), seed=0)
    seeds = wide.group(targets, key=(0, 0, 0)).seeds
    assert set(range(6, 16)) <= set(seeds.tolist())
    assert any(s < 6 or s > 15 for s in seeds)


def test_without_fill_a_group_is_its_anchors() -> None:
    batcher = SeedBatcher(np.arange(20), 50, None, SamplingOptions(groups=2, targets=5), seed=0, fill=False)
    for group in _groups(batcher, 0):
        assert len(group.seeds) == group.num_targets


def test_steps_differ_in_anchors_by_at_most_the_number_of_groups() -> None:
    batcher = SeedBatcher(np.arange(101), 200, None, SamplingOptions(groups=2, targets=16), seed=0, fill=False)
    sizes = [sum(map(len, step)) for step in batcher.items(0)]
    assert len(sizes) == batcher.steps_per_epoch == 4
    assert max(sizes) - min(sizes) <= 2


def test_too_few_training_nodes_are_refused() -> None:
    with pytest.raises(InputError, match=r"1 training nodes .* sampling.groups=2"):
        SeedBatcher(np.array([3]), 10, None, SamplingOptions(groups=2), seed=0, fill=False)
    with pytest.raises(InputError, match="optimag ppr"):
        SeedBatcher(np.arange(5), 10, None, SamplingOptions(groups=2), seed=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"targets": 10, "group_size": 5}, r"targets \(10\) must not exceed group_size \(5\)"),
        ({"fanouts": [10, 0]}, "fanouts must be positive"),
        ({"fanouts": [10, 5], "eval_fanouts": [5]}, "eval_fanouts needs 2 entries"),
        ({"target": 3}, "did you mean 'targets'"),
    ],
)
def test_options_are_checked(data: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        validate_options(SamplingOptions, data, "run.yaml")


def test_groups_for_judging_have_sixteen_nodes_to_every_anchor() -> None:
    options = SamplingOptions(batcher="uniform", targets=64, group_size=256)
    judging = options.for_kept_mass
    assert (judging.targets, judging.group_size, judging.batcher) == (16, 256, "ppr")
    assert SamplingOptions(targets=2, group_size=8).for_kept_mass.targets == 2


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.data())
def test_others_are_distinct_and_free(seed: int, n: int, data: st.DataObject) -> None:
    taken = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=n, unique=True)), np.int64)
    count = data.draw(st.integers(0, n - len(taken)))
    drawn = draw_others(np.random.default_rng(seed), n, taken, count)
    assert drawn.dtype == np.int64
    assert len(set(drawn.tolist())) == count == len(drawn)
    assert set(drawn.tolist()) <= set(range(n)) - set(taken.tolist())


def test_others_are_drawn_alike() -> None:
    rng, draws, taken = np.random.default_rng(0), 20_000, np.array([8, 0, 4])
    counts = np.bincount(np.concatenate([draw_others(rng, 10, taken, 3) for _ in range(draws)]), minlength=10)
    assert counts[[0, 4, 8]].sum() == 0
    expected = draws * 3 / 7
    assert np.abs(counts[[1, 2, 3, 5, 6, 7, 9]] - expected).max() < 5 * (expected * 4 / 7) ** 0.5
