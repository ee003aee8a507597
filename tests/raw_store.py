"""A small store of texts and pictures, some of them missing and two broken."""

import io
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from optimag_dist.store import GraphStore, ingest

from .tables import write_tables
from .tiny_models import WORDS

NUM_NODES = 40
#: Nodes whose picture does not decode.
BROKEN = (6, 23)


def text_of(node: int) -> str | None:
    """None for every seventh node, blank for one; one to nine words."""
    if node % 7 == 3:
        return None
    words = [WORDS[4 + (node * k) % (len(WORDS) - 4)] for k in range(1, 2 + node % 9)]
    return " " if node == 11 else " ".join(words)


def picture_of(node: int) -> bytes | None:
    """None for every fifth node, and half a file for the broken ones."""
    if node % 5 == 1 and node not in BROKEN:
        return None
    pixels = np.random.default_rng(node).integers(0, 256, (20, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    content = stream.getvalue()
    return content[: len(content) // 2] if node in BROKEN else content


def has_text(node: int) -> bool:
    return bool((text_of(node) or "").strip())


def has_picture(node: int) -> bool:
    return picture_of(node) is not None and node not in BROKEN


def make_raw_store(folder: Path) -> GraphStore:
    """Node i is called ``n<i>``; stored features ``facts`` (3) and ``image`` (4); attributes title, photo, nothing."""
    rng = np.random.default_rng(0)
    ids = [f"n{i}" for i in range(NUM_NODES)]
    nodes = {
        "id": ids,
        "facts": rng.normal(size=(NUM_NODES, 3)).tolist(),
        "image": rng.normal(size=(NUM_NODES, 4)).tolist(),
        "title": [text_of(node) for node in range(NUM_NODES)],
        "photo": [picture_of(node) for node in range(NUM_NODES)],
        "nothing": ["" for _ in ids],
    }
    edges = ((ids[u], ids[(u + 1) % NUM_NODES]) for u in range(NUM_NODES))
    schema = write_tables(folder, nodes, edges, ("facts", "image"))
    content = yaml.safe_load(schema.read_text())
    kinds = {"title": "text", "photo": "image", "nothing": "text"}
    content["attributes"] = {name: {"column": name, "kind": kind} for name, kind in kinds.items()}
    schema.write_text(yaml.safe_dump(content))
    return ingest(schema, folder / "store", say=lambda line: None)
