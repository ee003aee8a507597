"""What the generators have in common: metrics that do not depend on the batches, and what is said at the door."""

import sys
from typing import Any

import pytest
import torch

from optimag_dist.store import GraphStore
from optimag_dist.train.validation import check_input
from optimag_dist.types import InputError

from .signposts import IMAGE, TEXT, make_signposts
from .tiny_stores import batch_of, configure, evaluated, start


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return make_signposts(tmp_path_factory.mktemp("signposts") / "graph")


@pytest.mark.parametrize(("task", "metric"), [(TEXT, "nll"), (IMAGE, "denoising")])
def test_metrics_do_not_depend_on_the_chunks(
    store: GraphStore, task: dict[str, Any], metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = start(configure(task, model={"hidden": 32, "embedding": 16}), store)
    found = []
    for chunk in (5, 64):
        monkeypatch.setattr(sys.modules[type(parts.tasks[""]).__module__], "_CHUNK", chunk)
        found.append(evaluated(parts, "val")[metric])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("backbone", ["sage", "mlp"])
def test_evaluation_tells_a_generator_what_training_does(store: GraphStore, backbone: str) -> None:
    parts = start(configure(TEXT, model={"hidden": 32, "embedding": 16, "backbone": backbone}), store)
    parts.step_loss.eval()
    head, task, model = parts.heads[""], parts.tasks[""], parts.model
    nodes, forward = task.test, parts.forward()
    batch = batch_of(parts, nodes)
    with torch.no_grad():
        in_training = head.tokens(model, model.encode(batch.features), batch)
        states = forward.masked_states(nodes, [task.masked])[:, 0]
        in_evaluation = head.tokens.of_nodes(nodes, states, forward, task.masked)
    torch.testing.assert_close(in_evaluation[0][in_training[1]], in_training[0][in_training[1]], rtol=1e-4, atol=1e-5)
    assert torch.equal(in_evaluation[1], in_training[1])


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        (TEXT, {"withhold": None}, "task.withhold.*caption, shape"),
        (IMAGE, {"withhold": None}, "task.withhold.*caption, shape"),
        (TEXT, {"withhold": ["title"]}, "names 'title'.*caption, shape"),
        (TEXT, {"attribute": "photo"}, "task.attribute=photo, no text of this store; it has words"),
        (IMAGE, {"attribute": "words"}, "no image of this store; it has photo"),
        (TEXT, {"language_model": {"model": "./nowhere"}}, "no such folder"),
        (IMAGE, {"diffusion": {"model": "./nowhere"}}, "no such folder"),
        (TEXT, {"split": {"train": 0.99, "val": 0.005}}, "the val split has no node with a text in 'words'"),
    ],
)
def test_what_is_missing_is_told_at_the_door(
    store: GraphStore, task: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        check_input(store, configure({**task, **changes}), seed=0)


@pytest.mark.parametrize(("task", "what"), [(TEXT, "texts"), (IMAGE, "pictures")])
def test_a_store_without_what_is_asked_for_is_named(planted_store: GraphStore, task: dict[str, Any], what: str) -> None:
    with pytest.raises(
        InputError, match=f"needs the nodes' {what} and this store has none; name its column under attr"
    ):
        check_input(planted_store, configure(task), seed=0)
