"""What the generators have in common: figures that do not depend on the batches, and what is said at the door."""

from typing import Any

import pytest
import torch

from optimag_dist.store import GraphStore
from optimag_dist.train.validation import check_input
from optimag_dist.types import InputError

from .signposts import IMAGE, TEXT, make_signposts
from .tiny_stores import configure, start


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return make_signposts(tmp_path_factory.mktemp("signposts") / "graph")


@pytest.mark.parametrize(("task", "figure"), [(TEXT, "nll"), (IMAGE, "denoising")])
def test_figures_do_not_depend_on_the_chunks(store: GraphStore, task: dict[str, Any], figure: str) -> None:
    """Signposts are no anchors, so nothing that is withheld differs between chunks."""
    fitting = start(configure(task, model={"hidden": 32, "embedding": 16}), store)
    head, model = fitting._heads[""].eval(), fitting._model.eval()
    found = []
    for chunk in (5, 64):
        evaluation = fitting._tasks[""].evaluation("val")
        with torch.no_grad():
            for batch in fitting._loader.cover(evaluation.nodes, chunk, evaluation.ask):
                evaluation.update(model, head, model.encode(batch.features), batch)
        found.append(evaluation.compute(head)[figure])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


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
