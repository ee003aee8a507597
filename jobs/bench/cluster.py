"""What Ray costs around training: start, steps, checkpoints, recovery after a kill, and a sweep's idle time.

    python jobs/bench/cluster.py OUT [--parts step checkpoint recovery sweep] [--repeats 3]

Everything runs on openmoji with an embedded Ray, as ``optimag train`` and ``optimag tune`` of a user would; the moments
at which epochs end are read off the files that a run leaves. *step* compares an ``optimag train`` of one worker with a
bare torch loop over the same batches (no Ray, log, heart beat, checkpoint), in turn; *checkpoint* compares a checkpoint
after every epoch with none; *recovery* kills a worker of two and waits for the next epoch; *sweep* runs 16 trials with
one worker each on two cores and counts the time that is spent inside fits.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from rich.console import Console
from rich.table import Table

from optimag_dist.datasets import dataset_schema
from optimag_dist.models import MultimodalModel
from optimag_dist.options import load_options, merge
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import GroupLoader, LocalSource, SeedBatcher
from optimag_dist.store import GraphStore, ingest
from optimag_dist.tasks import make_task
from optimag_dist.train.options import RunConfig
from optimag_dist.train.regularisers import make_regulariser
from optimag_dist.train.step import StepLoss

POLL_S = 0.02
# Trials at a time: one per core.
SLOTS = 2
OPTIMAG = [sys.executable, "-m", "optimag_dist.cli"]
RUN = {
    "sampling": {"groups": 2, "targets": 64, "group_size": 256, "fanouts": [10, 10]},
    "task": {"split": {"train": 0.6, "val": 0.2}},
    "model": {"hidden": 256, "embedding": 128},
    "train": {"patience": 1000, "kept_mass": "none"},
    "workers": {"count": 1, "device": "cpu"},
}
SPACE = {
    "space": {
        "regulariser.alpha": {"uniform": [0.1, 0.9]},
        "regulariser.rho": {"loguniform": [0.01, 1.0]},
        "optim.lr": {"loguniform": [1e-3, 1e-2]},
    },
    "search": {"method": "random", "trials": 16, "seed": 0},
    "metrics": {"val/accuracy": "max"},
    "scheduler": {"method": "none"},
}
console = Console()


def main() -> None:
    parts: Mapping[str, Callable[[Path, int], Table]] = {
        "step": step,
        "checkpoint": checkpoint,
        "recovery": recovery,
        "sweep": sweep,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain_loop(arguments.plain)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / "store").exists():
        ingest(dataset_schema("openmoji"), arguments.out / "store")
    for name in arguments.parts:
        console.print(parts[name](arguments.out, arguments.repeats))


# -- a run, seen from outside ------------------------------------------------------------------------------------------


def write_config(out: Path, name: str, weight: float, changes: dict[str, Any]) -> Path:
    """A run of one variant and one seed; an earlier one of this name is removed."""
    shutil.rmtree(out / name, ignore_errors=True)
    content: dict[str, Any] = {**RUN, "name": name, "store": str(out / "store"), "out": str(out)}
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merge(content, {**changes, "regulariser.weight": weight})))
    return path


@contextmanager
def running(command: list[str], log: Path) -> Iterator[psutil.Popen]:
    """``command`` in a session of its own, gone with all it started when the block ends."""
    with log.open("w") as output:
        child = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}; see {log}")


def epoch_ends(child: psutil.Popen, metrics: Path, on_epoch: Callable[[int], None] = lambda count: None) -> list[float]:
    """When each epoch's line appeared in ``metrics``, until ``child`` has ended."""
    times: list[float] = []
    while child.poll() is None:
        count = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if count > len(times):
            times += [time.perf_counter()] * (count - len(times))
            on_epoch(count)
        time.sleep(POLL_S)
    return times


def train(out: Path, name: str, weight: float, changes: dict[str, Any]) -> tuple[float, list[float]]:
    """Seconds until the first epoch had ended, and when each epoch ended."""
    config = write_config(out, name, weight, changes)
    started = time.perf_counter()
    with running([*OPTIMAG, "train", str(config)], out / f"{name}.log") as child:
        times = epoch_ends(child, out / name / "default" / "seed-0" / "metrics.jsonl")
    return times[0] - started, times


def per_epoch(times: list[float]) -> float:
    """Median seconds between ends of epochs, without the first two, which compile and warm up."""
    return statistics.median(b - a for a, b in itertools.pairwise(times[2:]))


# -- the parts ---------------------------------------------------------------------------------------------------------


def step(out: Path, repeats: int) -> Table:
    """``optimag train`` with one worker against a bare loop, in turn."""
    table = Table(
        "loop",
        "start s",
        "plain ms/step",
        "Ray ms/step",
        "ratio",
        title=f"one worker under Ray Train against a plain torch loop, medians of {repeats}",
    )
    for name, weight in (("sage", 0.0), ("sage+optimag", 1.0)):
        starts, plain, ours = [], [], []
        for _ in range(repeats):
            changes = {"train": {"epochs": 20, "eval_every": 20}, "checkpoint.every": 20}
            start, times = train(out, "step", weight, changes)
            said = subprocess.run(
                [sys.executable, __file__, str(out), "--plain", str(out / "step.yaml")],
                capture_output=True,
                text=True,
                check=True,
            )
            result = json.loads(said.stdout.splitlines()[-1])
            starts.append(start)
            ours.append(per_epoch(times) / result["steps"] * 1e3)
            plain.append(per_epoch(result["times"]) / result["steps"] * 1e3)
        ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
        cells = [f"{statistics.median(values):.1f}" for values in (starts, plain, ours)]
        table.add_row(name, *cells, f"{ratio:.3f}")
    return table


def plain_loop(path: Path) -> None:
    """The same batches, model and loss in a bare loop; prints a JSON line with when each epoch ended."""
    torch.set_num_threads(1)
    config = load_options(RunConfig, path)
    store = GraphStore.open(config.store)
    needs_ppr = config.regulariser.weight > 0
    ppr = PPRArtefact.open(next(store.path.glob("ppr/*"))) if needs_ppr else None
    task = make_task(config.task, store, seed=0)
    torch.manual_seed(0)
    widths = {name: modality.width for name, modality in store.modalities.items()}
    model = MultimodalModel(widths, len(config.sampling.fanouts), config.model)
    regulariser = make_regulariser(config.regulariser) if needs_ppr else None
    loss_of = StepLoss(model, {"": task.head(model)}, {"": 1.0}, regulariser, 1)
    optimiser = torch.optim.AdamW(loss_of.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    loader = GroupLoader(LocalSource(store), ppr, config.sampling, seed=0, messages=True)
    batcher = SeedBatcher(task.train, store.num_nodes, ppr, config.sampling, seed=0, fill=needs_ppr)
    times = []
    for epoch in range(config.train.epochs):
        steps = 0
        for batch in loader.epoch([(batcher, task.examples)], epoch):
            optimiser.zero_grad(set_to_none=True)
            loss, *_ = loss_of(batch)
            loss.backward()
            optimiser.step()
            steps += 1
        times.append(time.perf_counter())
    print(json.dumps({"times": times, "steps": steps}))


def checkpoint(out: Path, repeats: int) -> Table:
    """A checkpoint after every epoch against one at the end."""
    every, never = [], []
    for _ in range(repeats):
        for epochs, seconds in ((1, every), (20, never)):
            changes = {"train": {"epochs": 20, "eval_every": 20}, "checkpoint.every": epochs}
            _, times = train(out, "checkpoint", 0.0, changes)
            seconds.append(per_epoch(times))
    size = (out / "checkpoint/default/seed-0/checkpoint.pt").stat().st_size
    table = Table("MB", "epoch s", "with a checkpoint s", "cost ms", title="cost of a checkpoint per epoch")
    a, b = statistics.median(never), statistics.median(every)
    table.add_row(f"{size / 1e6:.1f}", f"{a:.3f}", f"{b:.3f}", f"{(b - a) * 1e3:.0f}")
    return table


def recovery(out: Path, repeats: int) -> Table:
    """SIGKILL one of two workers; until the next epoch ends, and until training is where it was."""
    back, level = [], []
    for _ in range(repeats):
        changes = {"train": {"epochs": 60, "eval_every": 60}, "workers.count": 2, "checkpoint.every": 5}
        config = write_config(out, "recovery", 0.0, changes)
        metrics = out / "recovery" / "default" / "seed-0" / "metrics.jsonl"

        def wait_for(reached: Callable[[int], bool], child: psutil.Popen, metrics: Path = metrics) -> float:
            while not reached(metrics.read_bytes().count(b"\n") if metrics.exists() else 0):
                if child.poll() is not None:
                    raise RuntimeError(f"the run ended too early; see {out / 'recovery.log'}")
                time.sleep(POLL_S)
            return time.perf_counter()

        with running([*OPTIMAG, "train", str(config)], out / "recovery.log") as child:
            wait_for(lambda count: count >= 23, child)
            workers = [p for p in child.children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
            workers[-1].kill()
            killed = time.perf_counter()
            # The new workers cut the file back to their checkpoint, after epoch 20, then append.
            wait_for(lambda count: count == 20, child)
            back.append(wait_for(lambda count: count > 20, child) - killed)
            level.append(wait_for(lambda count: count > 23, child) - killed)
            child.wait()
    table = Table("next epoch s", "where it was s", title=f"recovery after a worker is killed, medians of {repeats}")
    table.add_row(f"{statistics.median(back):.1f}", f"{statistics.median(level):.1f}")
    return table


def sweep(out: Path, repeats: int) -> Table:
    """16 trials, two at a time, of two lengths; ``repeats`` is not used."""
    table = Table(
        "epochs",
        "trial s",
        "command s",
        "until the first fit s",
        "between fits s",
        "inside fits",
        "of it after the start",
        title="a sweep of 16 trials on two cores",
    )
    for epochs in (10, 40):
        config = write_config(out, "sweep", 1.0, {"train": {"epochs": epochs, "eval_every": 5}})
        (out / "space.yaml").write_text(yaml.safe_dump(SPACE))
        # Wall-clock time here, to compare with the times of files.
        started = time.time()
        with running([*OPTIMAG, "tune", str(config), str(out / "space.yaml")], out / "sweep.log") as child:
            child.wait()
        ended = time.time()
        spans = sorted(fit_span(path.parent) for path in (out / "sweep" / "trials").glob("*/seed-0/result.json"))
        inside = sum(end - start for start, end in spans)
        first, last = spans[0][0], max(end for _, end in spans)
        table.add_row(
            str(epochs),
            f"{inside / len(spans):.1f}",
            f"{ended - started:.0f}",
            f"{first - started:.0f}",
            f"{(SLOTS * (last - first) - inside) / len(spans):.2f}",
            f"{inside / (SLOTS * (ended - started)):.0%}",
            f"{inside / (SLOTS * (last - first)):.0%}",
        )
    return table


def fit_span(directory: Path) -> tuple[float, float]:
    """When a fit's directory was made and its result written."""
    born = subprocess.run(["stat", "-c", "%.3W", str(directory)], capture_output=True, text=True, check=True).stdout
    return float(born), (directory / "result.json").stat().st_mtime


if __name__ == "__main__":
    main()
