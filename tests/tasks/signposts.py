"""A graph in which a node's text and picture are told by its neighbours alone."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from optimag_dist.store import GraphStore, ingest

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "gold": (220, 190, 40)}
PER_COLOUR = 24
#: Tasks of a second or two on it.
TEXT = {
    "kind": "graph2text",
    "withhold": ["caption"],
    "language_model": {"hidden": 32, "layers": 1, "heads": 2, "max_length": 8},
    "tokens": {"state": 2, "neighbours": 2},
}
IMAGE = {
    "kind": "graph2image",
    "withhold": ["caption"],
    "feature_space": "pixels",
    "diffusion": {"size": 8, "channels": [16, 32], "sampling_steps": 10},
    "tokens": {"state": 2, "neighbours": 1},
}


def picture(colour: str, size: int = 16) -> bytes:
    content = BytesIO()
    Image.new("RGB", (size, size), COLOURS[colour]).save(content, format="PNG")
    return content.getvalue()


def make_signposts(folder: Path, *, bad_pictures: tuple[int, ...] = ()) -> GraphStore:
    """Every colour has a signpost, whose ``shape`` says which; the others have noise there, a text and a picture of
    their colour, and an edge to the signpost. ``caption`` stands for a modality made from the text.

    Nodes: PER_COLOUR things of each colour, colour after colour, then the signposts; the latter have neither text,
    picture nor caption. Every fourth thing is a test node, every fourth a validation node.

    Args:
        bad_pictures: things whose picture does not decode.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    colour = np.repeat(np.arange(len(names)), PER_COLOUR)
    things = len(colour)
    shape = rng.normal(size=(things + len(names), 8))
    shape[things:] = 0
    shape[things + np.arange(len(names)), np.arange(len(names))] = 4
    captions = np.eye(len(names))[colour] * 3 + rng.normal(size=(things, len(names))) * 0.1
    pictures = [b"not a picture" if i in bad_pictures else picture(names[c]) for i, c in enumerate(colour)]
    missing = [None] * len(names)
    nodes = {
        "id": [f"thing{i}" for i in range(things)] + [f"sign-{name}" for name in names],
        "shape": shape.tolist(),
        "caption": [*captions.tolist(), *missing],
        "words": [*(names[c] for c in colour), *missing],
        "png": [*pictures, *missing],
        "part": [("test", "val", "train", "train")[i % 4] for i in range(things)] + ["train"] * len(names),
    }
    pq.write_table(pa.table(nodes), folder / "nodes.parquet")
    ends = {"a": nodes["id"][:things], "b": [f"sign-{names[c]}" for c in colour]}
    pq.write_table(pa.table(ends), folder / "edges.parquet")
    schema = {
        "name": "signposts",
        "nodes": {"file": "nodes.parquet", "id": "id", "split": "part"},
        "modalities": {name: {"column": name} for name in ("shape", "caption")},
        "attributes": {"words": {"column": "words", "kind": "text"}, "photo": {"column": "png", "kind": "image"}},
        "edges": {"file": "edges.parquet", "source": "a", "target": "b", "directed": False},
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    return ingest(folder / "schema.yaml", folder / "store", say=lambda line: None)
