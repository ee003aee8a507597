"""Splits, loss and metrics of node classification against scikit-learn."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from optimag_dist.options import validate_options
from optimag_dist.tasks import NodeClassification, NodeClassificationOptions, make_task
from optimag_dist.tasks.node_classification import ClassCounts
from optimag_dist.types import Diverged, InputError


def _store(labels: list[int] | None, split: list[int] | None = None, classes: int = 3) -> SimpleNamespace:
    return SimpleNamespace(
        path="store",
        labels=None if labels is None else np.array(labels, dtype=np.int32),
        split=None if split is None else np.array(split, dtype=np.int8),
        classes=tuple(f"c{i}" for i in range(classes)),
    )


def _task(store: SimpleNamespace, split: object = "stored", seed: int = 0) -> NodeClassification:
    options = validate_options(NodeClassificationOptions, {"split": split}, "t")
    return make_task(options, store, seed=seed, modalities=())


def test_the_stored_split_leaves_unlabelled_nodes_out() -> None:
    task = _task(_store([0, 1, -1, 2, 1, 0], [0, 0, 0, 1, 2, -1]))
    assert (task.train.tolist(), task.val.tolist(), task.test.tolist()) == ([0, 1], [3], [4])


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(8, 60), min_size=2, max_size=4),
    train=st.floats(0.05, 0.5),
    val=st.floats(0.2, 0.4),
    seed=st.integers(0, 99),
)
def test_a_random_split_is_stratified_disjoint_and_a_function_of_the_seed(
    sizes: list[int], train: float, val: float, seed: int
) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    store = _store([*labels, -1, -1], classes=len(sizes))
    task, again = (_task(store, {"train": train, "val": val}, seed) for _ in range(2))
    parts = (task.train, task.val, task.test)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all(np.array_equal(a, b) for a, b in zip(parts, (again.train, again.val, again.test), strict=True))
    for label, size in enumerate(sizes):
        assert abs((labels[task.train] == label).sum() - max(1, train * size)) <= 1
        assert abs((labels[task.val] == label).sum() - val * size) <= 1


def test_seeds_split_differently() -> None:
    store = _store(list(np.arange(60) % 3))
    a, b = (_task(store, {"train": 0.2, "val": 0.2}, seed).train for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_metrics_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 4, generator=generator), torch.randint(3, (200,), generator=generator)
    logits[:, 3] = -9  # neither there nor predicted
    counts = ClassCounts(4)
    for part in (slice(0, 70), slice(70, 200)):
        counts.update(logits[part], labels[part])
    found = counts.of_all_ranks().metrics()
    assert float(found["accuracy"]) == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert float(found["macro_f1"]) == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))


@pytest.mark.parametrize(
    ("store", "split", "words"),
    [
        (_store(None), "stored", "needs labels and this store has none.*nodes.label"),
        (_store([0, 0], [0, 1], classes=1), "stored", "two classes or more"),
        (_store([0, 1]), "stored", "the store has no split.*nodes.split"),
        (_store([0, 1, 1], [0, 0, 2]), "stored", "the val split has no labelled node"),
    ],
)
def test_a_store_that_lacks_something_is_named(store: SimpleNamespace, split: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        _task(store, split)


def test_the_guess_is_the_class_that_most_training_nodes_have() -> None:
    assert _task(_store([1, 1, 0, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1, 2])).guess == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("labels", "split", "notes"),
    [
        ([0, 1, 2, 0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2], []),
        (
            [0, 1, 0, 1, 2, 0, 1],
            [0, 0, 1, 1, 1, 2, 2],
            ["no training nodes of class 'c2': never learned, so that 1 validation and test nodes can only be wrong"],
        ),
        ([0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2], ["no nodes at all of class 'c2'"]),
        (
            [0, 0, 1, 2, 1, 2],
            [0, 0, 1, 1, 2, 2],
            [
                "no training nodes of 2 classes, 'c1', 'c2': never learned, so that 4 validation and test nodes can "
                "only be wrong",
                "all training nodes are of class 'c0'",
                "no validation nodes of class 'c0': not judged there",
                "no test nodes of class 'c0': not judged there",
            ],
        ),
        ([0, 1, 2, 1, 0, 1, 2], [0, 0, 0, 1, 2, 2, 2], ["all validation nodes are of class 'c1'"]),
    ],
)
def test_what_a_split_cannot_teach_or_judge_is_noted(labels: list[int], split: list[int], notes: list[str]) -> None:
    assert _task(_store(labels, split)).notes == [f"split: {note}" for note in notes]


def test_of_many_classes_a_few_are_named() -> None:
    labels = list(range(30))
    (note, *_) = _task(_store(labels, [0, 1] + [2] * 28, classes=30)).notes
    assert note.startswith(
        "split: no training nodes of 29 classes, 'c1', 'c2', 'c3', 'c4', 'c5' and 24 more: never learned"
    )


def test_scores_that_are_no_numbers_are_no_accuracy() -> None:
    task = _task(_store([0, 1, 2, 1], [0, 1, 2, 1]))
    head = SimpleNamespace(linear=torch.nn.Identity())
    states = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 1.0, 2.0]])
    forward: Any = SimpleNamespace(states=lambda nodes: states, device=torch.device("cpu"))
    with pytest.raises(Diverged, match="the class scores of 1 of 2 nodes are not finite: the model has diverged"):
        task.evaluate("val", head, forward)
