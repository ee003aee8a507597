"""Wall time and memory of the whole path against the number of nodes: ingest, partition, PPR, one epoch, embed.

    python jobs/bench/scale.py contents.npz OUT [--nodes 500000 1000000 2000000 4000000 7999783]

``contents.npz`` is the Debian file graph (packages, directories, files); it is cut to each number of nodes and given
two derived modalities of 128 float16 (:mod:`contents`). Every stage is the command a user would run, in a process of
its own. Memory is what the process and all it started hold at once, each shared page counted once (PSS), sampled four
times a second; *private* is the part of it that is not mapped files, which the system can drop. One epoch trains on
1 % of the nodes with the regulariser and validates on 1 %; *embed* writes all nodes.

Leaves ``scale.json`` (one entry per finished stage: a rerun measures only what is missing), ``scale.md`` and
``scale.png`` in OUT. Accuracy is not reported: the labels of this graph leak through its edges.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import yaml
from contents import derive
from rich.console import Console

from optimag_dist.files import atomic

STAGES = ("ingest", "partition", "ppr", "train", "embed")
SAMPLES_PER_S = 4
RUN = {
    "name": "run",
    "variants": {"sage+optimag": {}},
    "sampling": {"groups": 2, "targets": 64, "group_size": 256, "fanouts": [10, 10], "eval_fanouts": [10, 10]},
    "model": {"hidden": 128, "embedding": 64},
    "train": {"epochs": 1, "kept_mass": "none"},
}


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """Resident and private bytes of a process and all below it, shared pages divided among their users."""
    resident = private = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()[1:]
        except (OSError, psutil.Error):  # it has just ended
            continue
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        resident += 1024 * kib["Pss"]
        private += 1024 * (kib["Pss_Anon"] + kib["Pss_Shmem"])
    return resident, private


def run(command: list[str], log: Path) -> dict[str, float]:
    """Run ``command`` to its end; seconds and peak gigabytes.

    Raises:
        RuntimeError: it failed; names the log.
    """
    started, peak = time.perf_counter(), np.zeros(2)
    with log.open("w") as output:
        child = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while child.poll() is None:
            peak = np.maximum(peak, memory_of(child))
            time.sleep(1 / SAMPLES_PER_S)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}; see {log}")
    return {"seconds": time.perf_counter() - started, "resident": peak[0] / 1e9, "private": peak[1] / 1e9}


def commands(folder: Path) -> Mapping[str, list[str]]:
    """Stage → command, for a graph whose tables lie in ``folder``."""
    optimag = [sys.executable, "-m", "optimag_dist.cli"]
    store = str(folder / "store")
    model = str(folder / "run" / "sage+optimag" / "seed-0" / "model.pt")
    return {
        "ingest": [*optimag, "ingest", str(folder / "tables" / "schema.yaml"), store],
        "partition": [*optimag, "partition", store, "parts=16"],
        "ppr": [*optimag, "ppr", store],
        "train": [*optimag, "train", str(folder / "run.yaml")],
        "embed": [*optimag, "embed", model, store, str(folder / "embeddings")],
    }


def measure(source: Path, nodes: int, out: Path, say: Console) -> None:
    """All stages of one size that are not measured yet; the graph's files go once the last has run."""
    done = read_results(out).get(nodes, {})
    missing = [stage for stage in STAGES if stage not in done]
    if not missing:
        return
    folder = out / str(nodes)
    if not (folder / "tables" / "schema.yaml").exists():
        derive(source, nodes, folder / "tables")
    with atomic(folder / "run.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(RUN | {"store": str(folder / "store"), "out": str(folder)}))
    for stage in missing:
        # A stage that was stopped half way is timed from its beginning.
        for left in {"train": ["run"], "embed": ["embeddings"]}.get(stage, []):
            shutil.rmtree(folder / left, ignore_errors=True)
        done[stage] = run(commands(folder)[stage], folder / f"{stage}.log")
        figures = "  ".join(f"{name} {value:7.1f}" for name, value in done[stage].items())
        say.print(f"{nodes:>9,}  {stage:10} {figures}")
        with atomic(out / "scale.json") as temporary:
            temporary.write_text(json.dumps(read_results(out) | {nodes: done}, indent=1))
    shutil.rmtree(folder)


def read_results(out: Path) -> dict[int, dict[str, dict[str, float]]]:
    """Number of nodes → stage → figures."""
    path = out / "scale.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    return {int(nodes): stages for nodes, stages in sorted(results.items(), key=lambda item: int(item[0]))}


def exponent(nodes: Sequence[int], values: Sequence[float]) -> float:
    """b of value = a · nodesᵇ, by least squares on logarithms."""
    return float(np.polyfit(np.log(nodes), np.log(values), 1)[0])


def tabulate(results: Mapping[int, Mapping[str, Mapping[str, float]]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: seconds, and peak resident (private) gigabytes, of every stage and in all."""
    header = ["nodes", *(f"{stage}, s" for stage in STAGES), "in all, s", *(f"{stage}, GB" for stage in STAGES)]
    rows = []
    for nodes, stages in results.items():
        seconds = [stages[stage]["seconds"] for stage in STAGES]
        memory = [f"{stages[stage]['resident']:.1f} ({stages[stage]['private']:.1f})" for stage in STAGES]
        rows.append([f"{nodes:,}", *(f"{s:.0f}" for s in seconds), f"{sum(seconds):.0f}", *memory])
    if len(results) > 1:
        sizes = list(results)
        columns = [[stages[stage]["seconds"] for stages in results.values()] for stage in STAGES]
        columns.append([sum(each) for each in zip(*columns, strict=True)])
        columns += [[stages[stage]["resident"] for stages in results.values()] for stage in STAGES]
        rows.append(["exponent", *(f"{exponent(sizes, column):.2f}" for column in columns)])
    return header, rows


def plot(results: Mapping[int, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, figure_of, label in zip(axes, ("seconds", "resident"), ("wall time, s", "peak memory, GB"), strict=True):
        for stage in STAGES:
            values = [stages[stage][figure_of] for stages in results.values()]
            axis.loglog(list(results), values, marker="o", label=stage)
        axis.set(xlabel="nodes", ylabel=label)
        axis.set_xticks(list(results), [f"{nodes / 1e6:.1f} M" for nodes in results])
        axis.minorticks_off()
        axis.grid(True, alpha=0.3)
    axes[0].legend()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--nodes", type=int, nargs="+", default=[500_000, 1_000_000, 2_000_000, 4_000_000, 7_999_783])
    args = parser.parse_args()
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    for nodes in args.nodes:
        measure(args.source, nodes, args.out, console)
    complete = {nodes: stages for nodes, stages in read_results(args.out).items() if set(STAGES) <= set(stages)}
    header, rows = tabulate(complete)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    with atomic(args.out / "scale.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    plot(complete, args.out / "scale.png")
    console.print(f"{args.out / 'scale.md'}\n{args.out / 'scale.png'}", highlight=False)


if __name__ == "__main__":
    main()
