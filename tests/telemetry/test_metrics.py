"""What a run exports, read back from the port that Prometheus reads."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from optimag_dist.telemetry import TrackingOptions
from optimag_dist.telemetry.metrics import FitMetrics
from optimag_dist.train.callback import TrainerCallback
from optimag_dist.train.fit import Fit
from optimag_dist.train.log import read_records

Samples = dict[str, list[tuple[dict[str, str], float]]]


def _only(samples: Samples, name: str, **labels: str) -> float:
    (value,) = [v for found, v in samples[name] if labels.items() <= found.items()]
    return value


def test_a_fits_figures_are_those_of_its_last_epoch(scraped: Samples) -> None:
    fit = {"run": "scraped", "variant": "sage", "seed": "4"}
    assert _only(scraped, "ray_optimag_epoch", **fit) == 3
    targets, seeds = (_only(scraped, f"ray_optimag_{each}_per_second", **fit) for each in ("targets", "seeds"))
    assert seeds > targets > 0
    assert 0 < _only(scraped, "ray_optimag_ufgw_share", **fit) < 1
    assert _only(scraped, "ray_optimag_ufgw_step_milliseconds", **fit) > 0
    assert 0 < _only(scraped, "ray_optimag_validation", **fit, metric="accuracy") <= 1
    for modality in ("text", "image"):
        assert 0 < _only(scraped, "ray_optimag_kept_mass", **fit, modality=modality) <= 1
    assert _only(scraped, "ray_optimag_epoch_seconds_count", **fit) == 3
    assert _only(scraped, "ray_optimag_checkpoint_seconds_count", **fit) == 3
    assert _only(scraped, "ray_optimag_checkpoint_seconds_sum", **fit) > 0


def test_ppr_counts_what_was_pushed_and_fetched(scraped: Samples) -> None:
    # Of whichever processes of the session counted.
    nodes, pushes, rows, fetched = (
        sum(value for _, value in scraped[f"ray_optimag_ppr_{each}_total"])
        for each in ("nodes", "pushes", "rows_fetched", "fetched_bytes")
    )
    assert nodes >= 120 + 10  # the planted graph's, and those made up
    assert pushes > 100
    assert rows >= 5
    assert fetched >= 2000


def test_every_call_reaches_the_host_that_is_wrapped(fit_with: Callable[..., Fit], tmp_path: Path) -> None:
    heard: list[str] = []

    class Hearing(TrainerCallback):
        def on_phase(self, phase: str, epoch: int, step: int) -> None:
            heard.append(phase)

        def on_epoch_end(self, record: dict) -> None:
            heard.append(f"epoch {record['epoch']}")

        def on_save(self, path: Path) -> None:
            heard.append(path.name)

    fit = fit_with(tmp_path, Hearing(), tracking=TrackingOptions())
    assert {"load", "step", "save", "evaluate"} <= set(heard)
    assert [f"epoch {r['epoch']}" for r in read_records(fit.directory / "metrics.jsonl")] == [
        each for each in heard if each.startswith("epoch ")
    ]
    assert {"checkpoint.pt", "model.pt", "result.json"} <= set(heard)
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] == 3


@pytest.mark.slow
def test_gauges_outlive_rays_memory_and_end_with_the_fit(metrics_url: str) -> None:
    def shown() -> bool:
        page = urllib.request.urlopen(metrics_url, timeout=10).read().decode()
        return bool(re.search('^ray_optimag_loss{.*run="long"', page, flags=re.MULTILINE))

    metrics = FitMetrics("long", "sage", 0)
    metrics.epoch({"epoch": 0, "loss": 1.0, "seconds": 60.0})
    time.sleep(45)  # a gauge that is set once is served for about twenty seconds
    assert shown()
    metrics.close()
    deadline = time.monotonic() + 90
    while shown() and time.monotonic() < deadline:
        time.sleep(2)
    assert not shown()
