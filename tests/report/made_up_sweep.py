"""A made-up sweep's directory: the metric is highest at α 0.6 and a small ρ."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ALPHA, RHO = "regulariser.alpha", "regulariser.rho"
CONTINUOUS: Mapping[str, Mapping[str, Any]] = {
    ALPHA: {"uniform": [0.1, 0.9]},
    RHO: {"loguniform": [0.01, 1.0]},
    "optim.lr": {"loguniform": [0.0005, 0.05]},
    "model.backbone": {"choice": ["sage", "gcn", "mlp"]},
    "regulariser.n_outer": {"randint": [1, 8]},
}


def draw(distribution: Mapping[str, Any], rng: np.random.Generator) -> Any:
    ((kind, arguments),) = distribution.items()
    if kind in ("choice", "grid"):
        return arguments[rng.integers(len(arguments))]
    if kind == "randint":
        return int(rng.integers(*arguments))
    if kind == "loguniform":
        return float(np.exp(rng.uniform(*np.log(arguments))))
    return float(rng.uniform(*arguments))


def score(values: Mapping[str, Any]) -> float:
    alpha, rho = values.get(ALPHA, 0.6), values.get(RHO, 0.1)
    return float(0.8 - 0.8 * (alpha - 0.6) ** 2 - 0.04 * (np.log10(rho) + 1.5) ** 2)


def write_sweep(
    directory: Path,
    space: Mapping[str, Mapping[str, Any]],
    num_trials: int,
    *,
    statuses: Mapping[int, str] | None = None,
    metrics: Mapping[str, str] | None = None,
    trials: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The rows of ``trials.parquet``; ``statuses`` names the trials that are not finished, by number."""
    rng = np.random.default_rng(0)
    metrics = dict(metrics or {"val/accuracy": "max"})
    rows = []
    for number in range(num_trials):
        values = trials[number] if trials else {key: draw(each, rng) for key, each in space.items()}
        status = (statuses or {}).get(number, "finished")
        epochs = {"finished": 12, "stopped": 5, "running": 3}.get(status, 0)
        reached = score(values) * (1 - 0.5 ** (epochs / 2))
        row = {"trial": f"t{number:02d}", "status": status, "epochs": epochs, "seconds": 1.5 * epochs, **values}
        row |= {
            name: (reached if i == 0 else i - reached**i / 3 + 0.05 * rng.normal()) for i, name in enumerate(metrics)
        }
        row |= {"error": None}
        if status in ("failed", "pending"):
            row |= dict.fromkeys(metrics)
        if status == "failed":
            row["error"] = "RuntimeError: <b>out of memory</b>"
        rows.append(row)
        for seed in range(2):
            folder = directory / "trials" / row["trial"] / f"seed-{seed}"
            folder.mkdir(parents=True)
            records = [
                {
                    "epoch": e,
                    "loss": 1.0,
                    "val/accuracy": score(values) * (1 - 0.5 ** ((e + 1) / 2)) + 0.01 * (-1) ** seed,
                }
                for e in range(epochs)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), directory / "trials.parquet")
    method = "grid" if any("grid" in each for each in space.values()) else "random"
    options = {"space": {k: dict(v) for k, v in space.items()}, "metrics": metrics, "search": {"method": method}}
    (directory / "space.yaml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    (directory / "config.yaml").write_text("name: toy-sweep\n", encoding="utf-8")
    return rows
