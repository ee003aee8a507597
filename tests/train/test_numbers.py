"""What a fit does with numbers: columns of any unit teach it something, and what is not finite ends it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from optimag_dist.options import validate_options
from optimag_dist.store import GraphStore, ingest
from optimag_dist.train.fit import Fit, Worker, run_fit
from optimag_dist.train.log import read_records
from optimag_dist.train.options import RunConfig
from optimag_dist.types import Diverged, InputError

from ..tables import write_tables

NUM_NODES = 200


def _fit(directory: Path, *, seed: int = 0, **sections: Mapping[str, object]) -> Fit:
    recipe: dict = {
        "name": "toy",
        "store": "none",
        "sampling": {"groups": 2, "targets": 32, "fanouts": [3]},
        "model": {"backbone": "mlp", "hidden": 32, "embedding": 16, "dropout": 0},
        "regulariser": {"weight": 0},
        "task": {"split": {"train": 0.6, "val": 0.2}},
        "optim": {"lr": 0.02},
        "train": {"epochs": 40},
    }
    for name, changes in sections.items():
        recipe[name] = {**recipe.get(name, {}), **changes}
    return Fit("default", seed, validate_options(RunConfig, recipe, "recipe").resolve()["default"], directory)


def _shop(folder: Path, facts: np.ndarray, labels: list) -> GraphStore:
    """Nodes with one modality ``facts`` (n, width) on a path."""
    nodes = {"id": range(len(facts)), "facts": facts.tolist(), "y": labels}
    edges = zip(range(len(facts) - 1), range(1, len(facts)), strict=True)
    return ingest(write_tables(folder, nodes, edges, ["facts"], label="y"), folder / "store", say=lambda line: None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e30])
@pytest.mark.parametrize("columns", ["price", "price weight", "price weight constant"])
def test_a_price_decides_in_any_unit_and_company(
    columns: str, unit: float, rng: np.random.Generator, tmp_path: Path
) -> None:
    price = rng.lognormal(3, 1, NUM_NODES)
    all_columns = {"price": price * unit, "weight": rng.normal(size=NUM_NODES), "constant": np.full(NUM_NODES, 0.1)}
    facts = np.stack([all_columns[name] for name in columns.split()], axis=1)
    store = _shop(tmp_path, facts, np.where(price > np.median(price), "dear", "cheap").tolist())
    result = run_fit(_fit(tmp_path / "fit"), store, None, Worker())
    assert result is not None
    assert result["test/accuracy"] >= 0.9  # .55 where rows are normalised and nothing else


@pytest.fixture(scope="module")
def two_moods(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    facts = np.random.default_rng(0).normal(size=(NUM_NODES, 3))
    return _shop(tmp_path_factory.mktemp("moods"), facts, np.where(facts[:, 0] > 0, "up", "down").tolist())


def _leavings(directory: Path) -> set[str]:
    return {file.name for file in directory.rglob("*") if file.suffix in (".pt", ".json")}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        # Weights of 1e30 overflow once they are used: in the first evaluation or in the second epoch's first step.
        (
            {"optim": {"lr": 1e30}},
            r"after epoch 1: the class scores of 40 of 40 nodes are not finite.*\(optim.lr is 1e\+30",
        ),
        (
            {"optim": {"lr": 1e30}, "train": {"eval_every": 10}},
            r"(modality 'facts'|the task's loss|the gradient) (are|is) not finite in epoch 2, step 1: "
            r"training has diverged; lower optim.lr \(now 1e\+30\) and train under another name",
        ),
    ],
)
def test_a_fit_that_diverges_ends_and_keeps_nothing(
    sections: dict, message: str, two_moods: GraphStore, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match=message):
        run_fit(_fit(tmp_path / "fit", sampling={"targets": 64}, **sections), two_moods, None, Worker())
    assert not _leavings(tmp_path)


class _Broken(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.nan


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_was_not_finite_first_is_named_on_all_ranks(
    world_size: int, two_moods: GraphStore, tmp_path: Path
) -> None:
    arguments = (world_size, two_moods.path, tmp_path)
    if world_size == 1:
        _diverge(0, *arguments)
    else:
        mp.spawn(_diverge, args=arguments, nprocs=world_size)
    assert not _leavings(tmp_path / "fit")


def _diverge(rank: int, world_size: int, store: Path, folder: Path) -> None:
    """The last rank's encoder begins to give NaN in the second step."""
    from optimag_dist.models import MultimodalModel

    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{folder}/sync", rank=rank, world_size=world_size)
    encode, calls = MultimodalModel.encode, 0

    def breaking(self, features):
        nonlocal calls
        calls += self.training
        z = encode(self, features)
        # One rank has both groups of a step, or each of two has one.
        return {m: _Broken()(x) if calls > 2 // world_size and rank == world_size - 1 else x for m, x in z.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultimodalModel, "encode", breaking)
        fit = _fit(folder / "fit", checkpoint={"every": 1}, workers={"count": world_size})
        with pytest.raises(
            Diverged, match="the embeddings of modality 'facts' are not finite in epoch 1, step 2: train"
        ):
            run_fit(fit, GraphStore.open(store), None, Worker(rank, world_size))
    if world_size > 1:
        dist.destroy_process_group()


def test_a_loss_that_has_exploded_is_said(two_moods: GraphStore, tmp_path: Path) -> None:
    result = run_fit(_fit(tmp_path / "fit", optim={"lr": 1e4}, train={"epochs": 3}), two_moods, None, Worker())
    assert result is not None
    largest = max(record["loss"] for record in read_records(tmp_path / "fit/metrics.jsonl"))
    assert f"and {largest:.3g} in epoch" in result["advice"]
    assert "lower optim.lr (now 10000)" in result["advice"]
    sound = run_fit(_fit(tmp_path / "sound", train={"epochs": 3}), two_moods, None, Worker())
    assert sound is not None
    assert sound["advice"] == ""


def test_half_a_fit_of_an_earlier_version_is_not_gone_on_with(two_moods: GraphStore, tmp_path: Path) -> None:
    fit = _fit(tmp_path, train={"epochs": 2})
    run_fit(fit, two_moods, None, Worker())
    (tmp_path / "result.json").unlink()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name in ("mean", "spread", "size"):
        del state["weights"][f"model.encoders.0.0.{name}"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint.pt: made by an earlier version .* train under another name"):
        run_fit(fit, two_moods, None, Worker())


def test_a_class_that_cannot_be_learned_is_told_with_the_result(rng: np.random.Generator, tmp_path: Path) -> None:
    labels = ["up", "down"] * 10
    part = ["train"] * 10 + ["val"] * 4 + ["test"] * 6
    labels[-1], labels[13] = "[sideways]", "up"
    nodes = {"id": range(20), "facts": rng.normal(size=(20, 2)).tolist(), "y": labels, "part": part}
    schema = write_tables(tmp_path, nodes, [(0, 1)], ["facts"], label="y", split="part")
    store = ingest(schema, tmp_path / "store", say=lambda line: None)
    one = {"sampling": {"groups": 1}, "train": {"epochs": 1}, "workers": {"count": 1}}
    fit = _fit(tmp_path / "fit", task={"split": "stored"}, **one)
    result = run_fit(fit, store, None, Worker())
    assert result is not None
    assert (
        "split: no training nodes of class '[sideways]': never learned, so that 1 validation and test"
        in (result["advice"])
    )
