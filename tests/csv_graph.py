"""A small CSV graph and a run of it, for tests of the command line."""

from pathlib import Path

import yaml


def _item(i: int) -> str:
    facts = "," if i % 7 == 0 else f"{i},{i % 4}"
    return f"SKU-{i:03d},{'tool' if i % 2 else 'toy'},{i % 2}.5 {i % 3} {i % 5},{facts}\n"


_FILES = {
    "items.csv": "sku,kind,words,price,weight\n" + "".join(map(_item, range(60))),
    "pairs.csv": "a,b\n" + "".join(f"SKU-{i:03d},SKU-{(i + step) % 60:03d}\n" for i in range(60) for step in (2, 4, 6)),
    "shop.yaml": yaml.safe_dump(
        {
            "name": "shop",
            "nodes": {"file": "items.csv", "id": "sku", "label": "kind"},
            "modalities": {"text": {"column": "words"}, "facts": {"columns": ["price", "weight"]}},
            "edges": {"file": "pairs.csv", "source": "a", "target": "b"},
        }
    ),
    "train.yaml": yaml.safe_dump(
        {
            "name": "shop",
            "store": "stores/shop",
            "seeds": [0, 1],
            "variants": {"sage": {"regulariser.weight": 0}, "sage+optimag": {}},
            "task": {"split": {"train": 0.4, "val": 0.3}},
            "sampling": {"targets": 8, "group_size": 24, "fanouts": [4, 4]},
            "train": {"epochs": 5},
        }
    ),
}


def write_csv_graph(folder: Path) -> None:
    """``shop.yaml`` to ingest, and ``train.yaml``, a run of two variants and two seeds on ``stores/shop``."""
    for name, text in _FILES.items():
        (folder / name).write_text(text)
