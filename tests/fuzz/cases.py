"""What is fuzzed: for each kind of input, a good one, how it is changed, and the commands that take it.

Commands that need Ray run as what they do around it: in this process, by the same public functions.
"""

import contextlib
import ctypes
import gzip
import hashlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from optimag_dist import cli
from optimag_dist.experiments.recipe import load_experiment
from optimag_dist.inference.ids import read_ids
from optimag_dist.inference.trained import TrainedModel
from optimag_dist.options import load_options, validate_options
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.artefact import artefact_key, block_name, write_block
from optimag_dist.ppr.topk import push_sources
from optimag_dist.store import GraphStore, ingest
from optimag_dist.store.csr import graph_hash, symmetrise
from optimag_dist.store.layout import META, StoreMeta
from optimag_dist.store.partition import PartitionOptions, find_partition, partition_store
from optimag_dist.submit.recipe import load_job
from optimag_dist.train import checkpoint
from optimag_dist.train.fit import Fit, Worker, run_fit
from optimag_dist.train.launch import plan_fits
from optimag_dist.train.options import RunConfig, VariantConfig
from optimag_dist.train.validation import check_input
from optimag_dist.tune.options import load_sweep
from optimag_dist.types import InputError

from .mutations import (
    CELLS,
    VALUES,
    YAML_TEXTS,
    Dice,
    change_arrays,
    change_bytes,
    change_csv,
    change_file,
    change_json,
    change_parquet,
    change_tree,
    change_yaml,
)

N = 60
_RNG = np.random.default_rng(0)
_EDGES = np.unique(np.sort(_RNG.integers(0, N - 2, (150, 2)), axis=1), axis=0)
EDGES = _EDGES[_EDGES[:, 0] != _EDGES[:, 1]]
X = {"text": _RNG.normal(size=(N, 5)).astype(np.float32), "image": _RNG.normal(size=(N, 4)).astype(np.float16)}
Y = np.arange(N) % 3
CLASSES = ["c0", "c1", "c2"]
PARTS = np.array(["train", "train", "val", "test"])[_RNG.integers(0, 4, N)]
MASKS = {f"{part}_mask": part == PARTS for part in ("train", "val", "test")}
VARIANT: dict[str, Any] = {
    "model": {"hidden": 8, "embedding": 4},
    "sampling": {"groups": 1, "targets": 12, "group_size": 24, "fanouts": [3]},
    "optim": {"lr": 0.01},
    "train": {"epochs": 1},
    "workers": {"count": 1},
    "ppr": {"eps": 1e-3, "k": 16, "block_size": 25},
}


@dataclass(frozen=True)
class Case:
    """Attributes:
    build: puts the good input into an empty folder.
    change: changes it and says how.
    commands: name → what takes it, in that folder; what it returns is its answer.
    same: whether an answer to changed input must be that to the good one, since the change is damage and no wish.
    """

    build: Callable[[Path], None]
    change: Callable[[Path, Dice], Any]
    commands: dict[str, Callable[[], Any]]
    same: bool = False


# The child that runs a case puts another in its place.
_APP = cli.app


def command(*words: str) -> Callable[[], str]:
    """``optimag`` with ``words``; its answer is what it prints."""

    def run() -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), _arguments(*words):
            _APP()
        return printed.getvalue()

    return run


@contextlib.contextmanager
def _arguments(*words: str) -> Iterator[None]:
    before, sys.argv = sys.argv, ["optimag", *words]
    try:
        yield
    except SystemExit as error:
        if error.code:
            raise
    finally:
        sys.argv = before


# -- graphs of users ---------------------------------------------------------------------------------------------------


def _nodes() -> dict[str, Any]:
    pictures = ["a.png" if i % 2 else None for i in range(N)]
    return {
        "id": [f"n{i}" for i in range(N)],
        "label": [None if i % 7 == 0 else f"c{y}" for i, y in enumerate(Y)],
        "part": PARTS.tolist(),
        "price": np.round(_RNG.normal(size=N), 3).tolist(),
        "year": (2000 + Y).tolist(),
        "text": [None if i % 5 == 0 else row.tolist() for i, row in enumerate(X["text"])],
        "title": [f"title {i}" for i in range(N)],
        "picture": pictures,
    }


def _schema(ending: str) -> dict[str, Any]:
    return {
        "name": "shop",
        "nodes": {
            "file": f"nodes.{ending}",
            "id": "id",
            "label": "label",
            "split": "part",
            "classes": ["c0", "c1", "c2"],
        },
        "modalities": {
            "text": {"column": "text"},
            "facts": {"columns": ["price", "year"]},
            "image": {"file": "x.npy", "dtype": "float16"},
        },
        "attributes": {
            "title": {"column": "title", "kind": "text"},
            "picture": {"column": "picture", "kind": "image_path"},
        },
        "edges": {"file": f"edges.{ending}", "source": "a", "target": "b", "directed": False},
    }


def build_tables(folder: Path, ending: str = "csv") -> None:
    nodes = _nodes()
    edges = {"a": [f"n{u}" for u, _ in EDGES], "b": [f"n{v}" for _, v in EDGES]}
    if ending == "parquet":
        pq.write_table(pa.table(nodes), folder / "nodes.parquet")
        pq.write_table(pa.table(edges), folder / "edges.parquet")
    else:
        nodes["text"] = [None if row is None else " ".join(map(str, row)) for row in nodes["text"]]
        for name, columns in (("nodes", nodes), ("edges", edges)):
            rows = [
                ",".join("" if cell is None else str(cell) for cell in row)
                for row in zip(*columns.values(), strict=True)
            ]
            (folder / f"{name}.csv").write_text("\n".join([",".join(columns), *rows, ""]))
    np.save(folder / "x.npy", X["image"])
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    (folder / "schema.yaml").write_text(yaml.safe_dump(_schema(ending), sort_keys=False))


def build_parquet(folder: Path) -> None:
    build_tables(folder, "parquet")


def change_schema(folder: Path, dice: Dice) -> str:
    return change_yaml(folder / "schema.yaml", dice)


def change_csv_tables(folder: Path, dice: Dice) -> str:
    names = ["nodes.csv", "nodes.csv", "edges.csv", "x.npy", "a.png"]
    return _file_of(folder, names, dice, {".csv": [change_csv] * 5})


def change_parquet_tables(folder: Path, dice: Dice) -> str:
    names = ["nodes.parquet", "nodes.parquet", "edges.parquet", "x.npy"]
    return _file_of(folder, names, dice, {".parquet": [change_parquet] * 2})


def _file_of(folder: Path, names: list[str], dice: Dice, own: dict[str, list[Callable[[Path, Dice], str]]]) -> str:
    if dice.below(12) == 11:
        return change_file(folder, names, dice)
    path = folder / dice.pick(names)
    if not path.is_file():
        return "nothing"
    return dice.pick([*own.get(path.suffix, []), change_bytes])(path, dice)


def _arrays() -> dict[str, Any]:
    return {"edges": EDGES, "x_text": X["text"], "x_image": X["image"], "y": Y, **MASKS}


def build_npz(folder: Path) -> None:
    np.savez(folder / "g.npz", **_arrays(), ids=np.arange(N) * 2, names=[f"title {i}" for i in range(N)])


def change_npz(folder: Path, dice: Dice) -> str:
    path = folder / "g.npz"
    if dice.below(3) == 2:
        return change_bytes(path, dice)
    with np.load(path, allow_pickle=False) as archive:
        arrays, what = change_arrays(dict(archive), dice)
    dice.pick([np.savez, np.savez_compressed])(path, **arrays)
    return what


def build_pt(folder: Path) -> None:
    tensors = {key: torch.from_numpy(array) for key, array in _arrays().items()}
    tensors["edge_index"] = tensors.pop("edges").T.contiguous()
    torch.save(tensors, folder / "g.pt")


_TENSORS: list[Callable[[torch.Tensor], Any]] = [
    lambda t: t.to_sparse(),
    lambda t: t.to(torch.bfloat16),
    lambda t: t.to(torch.float8_e5m2),
    lambda t: t.to(torch.complex64),
    lambda t: t.to("meta"),
    lambda t: t.tolist(),
    lambda t: {"a": t},
    lambda t: str(t.shape),
    lambda t: t.float().requires_grad_(),
    lambda t: t.expand(2, *t.shape),
]


def change_pt(folder: Path, dice: Dice) -> str:
    path = folder / "g.pt"
    if dice.below(3) == 2:
        return change_bytes(path, dice)
    content = torch.load(path, weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        return "nothing"
    if dice.below(3) == 2:
        key, number = dice.pick(sorted(content)), dice.below(len(_TENSORS))
        content[key], what = _TENSORS[number](content[key]), f"{key}: change {number}"
    else:
        with contextlib.suppress(TypeError):  # what numpy lacks stays as it is
            arrays, what = change_arrays({key: tensor.numpy() for key, tensor in content.items()}, dice)
            content = {key: _tensor(array) for key, array in arrays.items()}
    torch.save(content, path, _use_new_zipfile_serialization=dice.below(5) != 4)
    return what


def _tensor(array: np.ndarray) -> Any:
    try:
        return torch.from_numpy(array.copy())
    except (TypeError, ValueError):
        return array.tolist()


def build_ogb(folder: Path) -> None:
    files: dict[str, Any] = {
        "raw/edge": EDGES,
        "raw/num-node-list": [[N]],
        "raw/num-edge-list": [[len(EDGES)]],
        "raw/node-feat": X["text"],
        "raw/node-label": Y[:, None],
        **{f"split/time/{name}": np.flatnonzero(part == PARTS)[:, None] for part, name in _OGB_PARTS.items()},
    }
    for name, rows in files.items():
        path = folder / "g" / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{','.join(map(str, row))}\n" for row in np.asarray(rows).tolist())
        path.write_bytes(gzip.compress(text.encode(), mtime=0))


_OGB_PARTS = {"train": "train", "val": "valid", "test": "test"}


def change_ogb(folder: Path, dice: Dice) -> str:
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.csv.gz"))]
    if dice.below(4) == 3:
        return _file_of(folder, names, dice, {})
    path = folder / dice.pick(names)
    text = path.with_name("text.csv")
    text.write_bytes(gzip.decompress(path.read_bytes()))
    what = change_csv(text, dice)
    path.write_bytes(gzip.compress(text.read_bytes(), mtime=0))
    text.unlink()
    return f"{path.name}: {what}"


def takes(source: str, *overrides: str) -> dict[str, Callable[[], Any]]:
    """``optimag ingest`` to a new place, and to one where a store stands already."""

    def ingest_to(old: bool) -> str:
        target = Path("out/store")
        target.parent.mkdir()
        if old:
            shutil.copytree("old/store", target)
        before = contents(target.parent)
        try:
            command("ingest", source, str(target), *overrides, *(["--overwrite"] if old else []))()
        except Exception as error:
            left = sorted(dict(contents(target.parent).items() ^ before.items()))
            if left:
                raise AssertionError(f"a refused ingest has changed {', '.join(left)}") from error
            raise
        store = GraphStore.open(target)
        store.verify()
        check_sound(store)
        return store.content_hash

    return {"ingest": partial(ingest_to, False), "ingest over": partial(ingest_to, True)}


def with_old_store(build: Callable[[Path], None]) -> Callable[[Path], None]:
    """Also a store that the new one is to replace."""

    @wraps(build)
    def build_both(folder: Path) -> None:
        build(folder)
        (folder / "old").mkdir()
        build_npz(folder / "old")
        ingest(folder / "old" / "g.npz", folder / "old" / "store", say=lambda line: None)

    return build_both


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path → digest of the files under ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest() for path in files}


def check_sound(store: GraphStore) -> None:
    """A store that was made holds nothing out of range."""
    indptr, indices = store.topology.indptr, store.topology.indices
    assert indptr[0] == 0, indptr[:3]
    assert indptr[-1] == len(indices) == store.num_arcs
    assert (np.diff(indptr) >= 0).all()
    assert len(indices) == 0 or 0 <= indices.min() <= indices.max() < store.num_nodes
    for name in store.modalities:
        assert np.isfinite(store.gather(name, np.arange(store.num_nodes))).all(), name
    assert len(set(store.ids(np.arange(store.num_nodes)))) == store.num_nodes


# -- stores and what is made of them -----------------------------------------------------------------------------------


def variant(**changes: Any) -> VariantConfig:
    data = {**VARIANT, "regulariser": {"weight": 0}, **changes}
    return validate_options(VariantConfig, data, source="fuzz")


ALIGNED = {"regulariser": {"weight": 1.0}}


def build_world(folder: Path) -> None:
    """A store with PPR and a partition in it, a finished fit, an unfinished one, and files that speak of the store."""
    build_tables(folder, "parquet")
    store = ingest(folder / "schema.yaml", folder / "store", say=lambda line: None)
    options = PPROptions(**VARIANT["ppr"])
    graph = symmetrise(store.topology)
    key = artefact_key(graph_hash(graph), options)
    ppr = store.path / "ppr" / key
    sums = []
    for index, first in enumerate(range(0, N, options.block_size)):
        nodes = np.arange(first, min(first + options.block_size, N))
        rows = push_sources(graph, nodes, teleport=options.teleport, eps=options.eps, k=options.k, num_threads=1)
        sums.append(
            write_block(ppr / block_name(index), key, first, rows.indptr, rows.indices, rows.values, rows.bounds)
        )
    PPRArtefact.finish(ppr, N, options, graph_hash(graph), sums)
    partition_store(store, PartitionOptions(parts=2, features=True), progress=False)
    fit = Fit("fuzz", 0, variant(), folder / "fit")
    run_fit(fit, store, None, Worker())
    (folder / "unfinished").mkdir()
    shutil.copy(folder / "fit" / "checkpoint.pt", folder / "unfinished")
    ids = [f"n{i}" for i in (5, 3, 40)]
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in ids))
    (folder / "ids.csv").write_text("".join(f"{name}\n" for name in ["id", *ids]))
    pq.write_table(pa.table({"id": ids}), folder / "ids.parquet")
    present = {tuple(edge) for edge in EDGES.tolist()}
    new = [(u, v) for u in range(5) for v in range(40, 45) if (u, v) not in present][:4]
    changes = [("source", "target", "op")]
    changes += [(f"n{u}", f"n{v}", "delete") for u, v in EDGES[:3].tolist()] + [
        (f"n{u}", f"n{v}", "insert") for u, v in new
    ]
    (folder / "changes.csv").write_text("".join(f"{','.join(row)}\n" for row in changes))
    names, *rows = changes
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "changes.parquet")


def damage(*patterns: str) -> Callable[[Path, Dice], str]:
    """Damage to one of the files that a pattern finds."""

    def change(folder: Path, dice: Dice) -> str:
        names = sorted(
            str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern) if path.is_file()
        )
        if not names:
            return "nothing"
        if dice.below(8) == 7:
            return change_file(folder, names, dice)
        path = folder / dice.pick(names)
        if path.suffix == ".json" and dice.below(3):
            with contextlib.suppress(ValueError):
                return change_json(path, dice)
        return change_bytes(path, dice)

    return change


def forge_meta(folder: Path, dice: Dice) -> str:
    """The description of a store says something else, with a content hash that fits."""
    path = folder / "store" / META
    what = change_json(path, dice)
    with contextlib.suppress(Exception):
        record = json.loads(path.read_text())
        record.pop("content_hash", None)
        meta = StoreMeta.model_validate(record)
        path.write_text(json.dumps({"content_hash": meta.content_hash, **record}))
    return f"forged {what}"


def forge_model(folder: Path, dice: Dice) -> str:
    """Another value, or a tensor of another kind, in a model with a checksum that fits, as of somebody else."""
    path = folder / "fit" / "model.pt"
    state = torch.load(path, weights_only=True)
    if dice.below(2):
        key, number = dice.pick(sorted(state["model"])), dice.below(len(_TENSORS))
        state["model"][key] = _TENSORS[number](state["model"][key])
        what = f"{key}: change {number}"
    else:
        state, what = change_tree(state, dice)
    with contextlib.suppress(RuntimeError, NotImplementedError):
        checkpoint.save(path, state)
    return what


def digest(*parts: Any) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else repr(part).encode())
    return whole.hexdigest()


def split() -> str:
    command("split", "store", "out", "val=0.1", "test=0.1", "negatives=5")()
    store = GraphStore.open("out")
    store.verify()
    check_sound(store)
    return store.content_hash


def partition() -> str:
    command("partition", "store", "parts=3", "seed=1")()
    made = sorted(
        path for path in Path("store/partitions").iterdir() if '"parts": 3' in (path / "meta.json").read_text()
    )
    return digest(*(sorted(contents(path).items()) for path in made))


def shards() -> str:
    store = GraphStore.open("store")
    found = find_partition(store.path, store.content_hash, None)
    nodes = np.arange(store.num_nodes)
    answer = [found.part, found.degrees, *found.rows(nodes)]
    for part in range(found.meta.parts):
        for name in store.modalities:
            flat, starts = found.feature_file(part, name)
            answer += [np.array(flat), starts, found.present(part, name)]
    return digest(*answer)


def push() -> str:
    graph = symmetrise(GraphStore.open("store").topology)
    rows = push_sources(graph, np.arange(graph.num_nodes), teleport=0.15, eps=1e-3, k=16, num_threads=1)
    return digest(rows.indptr, rows.indices, rows.values, rows.bounds)


def predict() -> str:
    cpu = torch.device("cpu")
    trained, store = TrainedModel.open(Path("fit"), cpu), GraphStore.open("store")
    trained.check_store(store, allow_other=False)
    fanouts = trained.fanouts(None)
    forward = trained.forward(store, fanouts, 0)
    nodes = np.arange(store.num_nodes)
    with torch.inference_mode():
        scores = trained.classifier.linear(forward.states(nodes)).softmax(dim=1).numpy()
    return digest(scores, trained.classes, store.ids(nodes))


def train(directory: str, config: VariantConfig) -> str:
    store = GraphStore.open("store")
    ppr = PPRArtefact.open(next(iter(sorted(Path("store/ppr").iterdir())))) if config.needs_ppr else None
    if ppr is not None and ppr.graph_hash != graph_hash(symmetrise(store.topology)):
        raise InputError("not the PPR of this store")  # as compute_ppr finds it by its key
    result = run_fit(Fit("fuzz", 0, config, Path(directory).absolute()), store, ppr, Worker())
    return json.dumps(result, sort_keys=True)


def attributes() -> str:
    store = GraphStore.open("store")
    nodes = np.arange(store.num_nodes)
    return digest(*((store.has_attribute(name), store.attribute(name, nodes)) for name in sorted(store.attributes)))


def inspect() -> str:
    (artefact,) = map(str, Path("store/ppr").iterdir())
    return command("ppr", "inspect", artefact, "--node", "n3", "--store", "store")()


def update(edges: str = "changes.csv") -> str:
    command("ppr", "update", "store", "--edges", edges, "--out", "out")()
    store = GraphStore.open("out")
    store.verify()
    check_sound(store)
    return digest(store.content_hash, *(sorted(contents(path).items()) for path in sorted(Path("out/ppr").iterdir())))


def listed(file: str) -> list[Any]:
    store = GraphStore.open("store")
    ids = read_ids(Path(file), store)
    return store.ids(store.lookup(ids))


def _either(own: Callable[[Path, Dice], str], names: list[str]) -> Callable[[Path, Dice], str]:
    def change(folder: Path, dice: Dice) -> str:
        return _file_of(folder, names, dice, {".csv": [own] * 3, ".txt": [own] * 3, ".parquet": [change_parquet] * 3})

    return change


IDS, CHANGES = ["ids.txt", "ids.csv", "ids.parquet"], ["changes.csv", "changes.parquet"]
change_ids, change_changes = _either(change_csv, IDS), _either(change_csv, CHANGES)


STORE_COMMANDS = {
    "split": split,
    "partition": partition,
    "push": push,
    "predict": predict,
    "train": partial(train, "new", variant()),
    "attributes": attributes,
    "update": update,
}


# -- configurations ----------------------------------------------------------------------------------------------------


def build_runs(folder: Path) -> None:
    build_npz(folder)
    ingest(folder / "g.npz", folder / "store", say=lambda line: None)
    run = {
        "name": "toy",
        "store": "store",
        "out": "runs",
        "seeds": [0, 1],
        **VARIANT,
        "task": {"kind": "node_classification", "split": "stored"},
        "variants": {"off": {"regulariser": {"weight": 0}}, "on": {"regulariser": {"weight": 1.5, "alpha": 0.5}}},
    }
    space = {
        "variant": "on",
        "space": {"optim.lr": {"loguniform": [1e-4, 1e-1]}, "model.hidden": {"choice": [8, 16]}},
        "search": {"trials": 4},
    }
    job = {
        "name": "job",
        "steps": ["ingest {source} stores/a", "ppr stores/a k={k}"],
        "parameters": {"source": "g.npz", "k": 8},
    }
    for name, content in (("run", run), ("space", space), ("job", job)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = Path(__file__).parents[2] / "jobs" / "experiments" / "conflicts.yaml"
    shutil.copy(recipe, folder / "experiment.yaml")
    (folder / "overrides.json").write_text("[]")


def change_configuration(name: str) -> Callable[[Path, Dice], str]:
    return lambda folder, dice: change_yaml(folder / name, dice)


_KEYS = [
    *(
        "name",
        "directed",
        "features.a",
        "features",
        "encoder",
        "split",
        "optim.lr",
        "train.epochs",
        "train",
        "model.hidden",
    ),
    *(
        "seeds",
        "variants.off",
        "variants",
        "task.kind",
        "store",
        "out",
        "ppr.eps",
        "parts",
        "method",
        "",
        "a.b.c.d",
        ".",
    ),
    *("nodes.id", "sampling.fanouts", "model.backbone", "x\ny", "é"),
]


def change_overrides(folder: Path, dice: Dice) -> str:
    path = folder / "overrides.json"
    value = dice.pick([*map(str, VALUES), *YAML_TEXTS, *CELLS])[:5000]
    override = dice.pick([f"{dice.pick(_KEYS)}={value}"] * 9 + [value])
    path.write_text(json.dumps([*json.loads(path.read_text()), override]))
    return repr(override[:80])


def overrides() -> list[str]:
    return json.loads(Path("overrides.json").read_text())


def run_file(given: Callable[[], list[str]] = list) -> str:
    config = load_options(RunConfig, "run.yaml", given())
    store = GraphStore.open(config.store)
    for fit in plan_fits(config):
        check_input(store, fit.config, fit.seed)
    return repr(config)


def sweep_file(given: Callable[[], list[str]] = list) -> str:
    return repr(load_sweep(Path("run.yaml"), Path("space.yaml"), given()))


CASES = {
    "schema": Case(with_old_store(build_tables), change_schema, takes("schema.yaml")),
    "csv": Case(with_old_store(build_tables), change_csv_tables, takes("schema.yaml")),
    "parquet": Case(with_old_store(build_parquet), change_parquet_tables, takes("schema.yaml")),
    "npz": Case(with_old_store(build_npz), change_npz, takes("g.npz")),
    "pt": Case(with_old_store(build_pt), change_pt, takes("g.pt")),
    "ogb": Case(with_old_store(build_ogb), change_ogb, takes("g")),
    "store": Case(build_world, damage("store/*"), STORE_COMMANDS, same=True),
    "forged store": Case(build_world, forge_meta, STORE_COMMANDS),
    "partition": Case(build_world, damage("store/partitions/*/*"), {"shards": shards}, same=True),
    "ppr": Case(
        build_world,
        damage("store/ppr/*/*"),
        {"inspect": inspect, "update": update, "train": partial(train, "new", variant(**ALIGNED))},
        same=True,
    ),
    "model": Case(build_world, damage("fit/model.pt"), {"predict": predict}, same=True),
    "forged model": Case(build_world, forge_model, {"predict": predict}),
    "checkpoint": Case(
        build_world,
        damage("unfinished/checkpoint.pt"),
        {"resume": partial(train, "unfinished", variant(train={**VARIANT["train"], "epochs": 2}))},
        same=True,
    ),
    "ids": Case(build_world, change_ids, {file: partial(listed, file) for file in IDS}),
    "changes": Case(build_world, change_changes, {file: partial(update, file) for file in CHANGES}),
    "run": Case(build_runs, change_configuration("run.yaml"), {"train": run_file, "tune": sweep_file}),
    "space": Case(build_runs, change_configuration("space.yaml"), {"tune": sweep_file}),
    "job": Case(build_runs, change_configuration("job.yaml"), {"job": lambda: repr(load_job(Path("job.yaml")))}),
    "experiment": Case(
        build_runs,
        change_configuration("experiment.yaml"),
        {"experiment": lambda: repr(load_experiment(Path("experiment.yaml"), [], quick=False))},
    ),
    "overrides": Case(
        build_runs,
        change_overrides,
        {
            "ingest": lambda: command("ingest", "g.npz", "out", *overrides())(),
            "train": partial(run_file, overrides),
            "tune": partial(sweep_file, overrides),
            "partition": lambda: command("partition", "store", *overrides())(),
            "split": lambda: command("split", "store", "out", "negatives=5", *overrides())(),
        },
    ),
}


def _go_wrong(how: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: how() if Path("changed").exists() else 1


# What must be seen as what it is called.
PROBES = Case(
    lambda folder: None,
    lambda folder, dice: (folder / "changed").write_text("changed"),
    {
        "crash": _go_wrong(lambda: ctypes.string_at(0)),
        "hang": _go_wrong(lambda: time.sleep(1000)),
        "success": _go_wrong(lambda: 1),
        "traceback": _go_wrong(lambda: {}[0]),
        "wrong answer": _go_wrong(lambda: 2),
    },
    same=True,
)
