"""A made-up run directory over a small real store.

The graph is a ring of nodes 0 … 12 and the isolated node 13; kept mass of text rises with the node number and that of
image falls; the isolated node has none. Node 3 has no image features.
"""

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from optimag_dist.options import dump_options
from optimag_dist.store import GraphStore, ingest
from optimag_dist.train import checkpoint
from optimag_dist.train.options import RunConfig

NODES = 14
ISOLATED = 13
EVIL = "<script>alert('x')</script>"
OFF = {"regulariser.weight": 0}


def image_file(node: int, size: int = 4) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (size, size), (node * 15, 40, 90)).save(content, format="PNG")
    return content.getvalue()


def _schema(attributes: bool, directed: bool) -> str:
    text = f"""
name: toy
nodes: {{file: nodes.parquet, id: code, label: kind, split: split}}
modalities: {{text: {{column: x_text}}, image: {{column: x_image}}}}
edges: {{file: edges.parquet, source: src, target: dst, directed: {str(directed).lower()}}}
"""
    return text + "attributes: {name: {column: name, kind: text}, pic: {column: png, kind: image}}\n" * attributes


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GraphStore]:
    def make(*, attributes: bool = True, directed: bool = False) -> GraphStore:
        ids = [f"n{i:02}" for i in range(NODES)]
        nodes = {
            "code": ids,
            "kind": ["even & co" if i % 2 == 0 else "odd" for i in range(NODES)],
            "split": [("train", "val", "test")[i % 3] for i in range(NODES)],
            "x_text": [[float(i), 1.0, 2.0] for i in range(NODES)],
            "x_image": [None if i == 3 else [1.0, float(i)] for i in range(NODES)],
            "name": [EVIL if i == 0 else f"name of {i}" for i in range(NODES)],
            "png": [image_file(i) for i in range(NODES)],
        }
        edges = {"src": ids[:ISOLATED], "dst": ids[1:ISOLATED] + ids[:1]}
        source = tmp_path_factory.mktemp("source")
        pq.write_table(pa.table(nodes), source / "nodes.parquet")
        pq.write_table(pa.table(edges), source / "edges.parquet")
        (source / "schema.yaml").write_text(_schema(attributes, directed), encoding="utf-8")
        return ingest(source / "schema.yaml", source / "store", say=lambda line: None)

    return make


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a run; of the finished fits the test accuracy is given, or the figures of their result with what decides;
    the others are in their third epoch."""

    def make(
        store: GraphStore,
        finished: Mapping[tuple[str, int], float | Mapping[str, Any]],
        *,
        variants: Mapping[str, Mapping[str, Any]],
        seeds: tuple[int, ...],
        compare_to: Mapping[str, str] | None = None,
    ) -> Path:
        config = RunConfig(
            name="toy-run",
            store=store.path,
            out=tmp_path_factory.mktemp("runs"),
            seeds=seeds,
            variants={name: dict(changes) for name, changes in variants.items()},
            compare_to=dict(compare_to or {}),
        )
        config.directory.mkdir()
        dump_options(config, config.directory / "config.yaml")
        for name, variant in config.resolve().items():
            for seed in seeds:
                folder = config.directory / name / f"seed-{seed}"
                folder.mkdir(parents=True)
                regularised = variant.regulariser.active
                result = finished.get((name, seed))
                epochs = 2 if result is None else 4 + seed
                # An unfinished fit is validated as the variant's others are.
                like = result or next((each for (variant, _), each in finished.items() if variant == name), 0.0)
                figures = _figures(like) if isinstance(like, float) else like
                records = [_epoch(epoch, figures, regularised) for epoch in range(epochs)]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
                if result is not None:
                    _finish(folder, name, seed, epochs, figures, store, regularised)
        return config.directory

    return make


def _figures(accuracy: float) -> dict[str, Any]:
    """As node classification's results were before there were other tasks."""
    validated = {"val/accuracy": 0.5, "val/macro_f1": 0.4}
    return {**validated, "test/accuracy": accuracy, "test/macro_f1": accuracy / 2}


def _epoch(epoch: int, figures: Mapping[str, Any], regularised: bool) -> dict[str, float]:
    record: dict[str, float] = {
        "epoch": epoch,
        "loss": 2.0 / (epoch + 1),
        "task_loss": 1.0,
        "seconds": 0.5,
        "targets_per_s": 10.0,
    }
    if epoch % 2 == 1:  # evaluated every other epoch
        record |= {key: value + 0.01 * (epoch - 1) for key, value in figures.items() if key.startswith("val/")}
    if not regularised:
        return record
    held = {"regulariser/weight": 50.0, "regulariser/share": 0.2 * epoch, "regulariser/opposed": 0.5}
    return record | {"alignment": 1.0 / (epoch + 1), "kept_ppr": 0.4, **held}


def _finish(
    folder: Path,
    variant: str,
    seed: int,
    epochs: int,
    figures: Mapping[str, Any],
    store: GraphStore,
    regularised: bool,
) -> None:
    advice = f"regulariser: neighbours share a class in {40 + seed}% of pairs" if regularised else ""
    result = {"variant": variant, "seed": seed, "epochs": epochs, "best_epoch": 1, "advice": advice, **figures}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    checkpoint.save(folder / "model.pt", {"store": store.content_hash})
    if regularised:
        ramp = np.linspace(0.2, 0.8, NODES, dtype=np.float32) + np.float32(0.001 * seed)
        text, image = ramp.copy(), ramp[::-1].copy()
        text[ISOLATED] = image[ISOLATED] = image[3] = math.nan
        table = pa.table({"id": store.ids(np.arange(NODES)), "text": text, "image": image})
        pq.write_table(table, folder / "kept_mass.parquet")
