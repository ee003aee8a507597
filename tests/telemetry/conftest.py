"""A tiny run that exports everything, and what Prometheus then reads of the session's Ray."""

import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch

from optimag_dist.ppr import PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.store import GraphStore
from optimag_dist.telemetry import TrackingOptions
from optimag_dist.telemetry.metrics import count_ppr_block
from optimag_dist.train.callback import CallbackList, TrainerCallback
from optimag_dist.train.callbacks import telemetry
from optimag_dist.train.fit import Fit, Worker, run_fit
from optimag_dist.train.options import VariantConfig

CONFIG = {
    "sampling": {"groups": 1, "targets": 12, "group_size": 32, "fanouts": [5, 5]},
    "model": {"hidden": 32, "embedding": 16},
    "train": {"epochs": 3, "kept_mass": "none"},
    "workers": {"count": 1},
    "checkpoint": {"every": 1},
}
Samples = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture(scope="session")
def metrics_url(ray_session: None) -> str:
    (node,) = ray.nodes()
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


@pytest.fixture(scope="session")
def fit_with(
    planted_store: GraphStore, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Fit]:
    """Runs a fit of three epochs in this process, told of by ``telemetry`` with the arguments given."""
    ppr = compute_ppr(planted_store, PPROptions(), tmp_path_factory.mktemp("ppr") / "artefact")

    def fit_with(directory: Path, callback: TrainerCallback, run: str = "toy", **arguments: object) -> Fit:
        fit = Fit("sage", 4, VariantConfig.model_validate(CONFIG), directory)
        torch.set_num_threads(1)
        with telemetry(fit, 0, run=run, **arguments) as told:  # type: ignore[arg-type]
            run_fit(fit, planted_store, ppr, Worker(0, 1, torch.device("cpu")), CallbackList([*told, callback]))
        return fit

    return fit_with


@pytest.fixture(scope="session")
def scraped(fit_with: Callable[..., Fit], metrics_url: str, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """What the metrics port serves after a run, by name: labels and value of every sample."""
    samples: Samples = {}

    class Lingering(TrainerCallback):
        """Keeps the fit's figures alive until the port has served them, as a longer fit would."""

        def on_save(self, path: Path) -> None:
            if path.name == "result.json":
                # What a sharded run adds to the counts: a replicated one fetches nothing.
                count_ppr_block(nodes=10, pushes=100, rows_fetched=5, bytes_fetched=2000)
                samples.update(_scrape(metrics_url, run="scraped"))

    # A name of its own: the session's port shows the other tests' fits too.
    fit_with(tmp_path_factory.mktemp("fit"), Lingering(), run="scraped", tracking=TrackingOptions())
    return samples


def _scrape(url: str, run: str) -> Samples:
    """Metrics reach the port some ten seconds after they were set, not all at once; those of ``run`` are awaited."""

    def served(name: str, value: float, **labels: str) -> bool:
        return any(labels.items() <= found.items() and v >= value for found, v in samples.get(name, []))

    deadline = time.monotonic() + 300
    samples: Samples = {}
    while not (
        served("ray_optimag_epoch", 3, run=run)
        and served("ray_optimag_epoch_seconds_count", 3, run=run)
        and served("ray_optimag_checkpoint_seconds_count", 3, run=run)
        and served("ray_optimag_ppr_fetched_bytes_total", 2000)
    ):
        assert time.monotonic() < deadline, f"the metrics of {run} are not served: {sorted(samples)}"
        time.sleep(1)
        samples = {}
        for line in urllib.request.urlopen(url, timeout=10).read().decode().splitlines():
            if found := re.fullmatch(r"([a-z_A-Z0-9]+)(?:\{(.*)\})? (\S+)", line):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                samples.setdefault(found[1], []).append((labels, float(found[3])))
    return samples
