"""Exact ranks among all nodes: streamed in blocks, against the whole score matrix, sorted or counted.

    python jobs/bench/ranking.py [--nodes 20000] [--queries 2000] [--width 64] [--blocks 256 512 1024] [--threads 1]

Scores are dot products of normal vectors. *Sorted* is the usual way: the (queries, nodes) matrix, its ``argsort``,
and where the true node stands; it breaks ties by chance. *Counted* compares the matrix with the true nodes' scores.
Each way runs in a process of its own. Processor seconds are the median of ``--repeats`` calls after a small one, memory
is the most that was resident beyond what was before. Ratios are of *sorted* to each; MRR shows that answers are one.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from optimag_dist.tasks.link_prediction import DotDecoder
from optimag_dist.tasks.ranking import rank_all, ranking_metrics

score = DotDecoder().score_all


def sorted_ranks(queries: Tensor, candidates: Tensor, true: Tensor) -> Tensor:
    order = score(queries, candidates).argsort(dim=1, descending=True)
    return 1 + (order == true[:, None]).double().argmax(1).double()


def counted_ranks(queries: Tensor, candidates: Tensor, true: Tensor) -> Tensor:
    scores = score(queries, candidates)
    thresholds = scores.gather(1, true[:, None])
    level = (scores == thresholds).sum(1) - 1
    return 1 + (scores > thresholds).sum(1).double() + level.double() / 2


def way_of(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    ways = {"sorted": sorted_ranks, "counted": counted_ranks}
    return ways[name] if name in ways else partial(rank_all, score=score, block=int(name))


def draw(nodes: int, queries: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.randn(rows, width, generator=generator) for rows in (queries, nodes))
    return (*vectors, torch.randint(nodes, (queries,), generator=generator))  # type: ignore[return-value]


def most_resident() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(args.threads)
    way, problem = way_of(name), draw(args.nodes, args.queries, args.width)
    way(*draw(300, 100, args.width))
    # The most that was ever resident starts again from what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = most_resident(), []
    for _ in range(args.repeats):
        started = time.process_time()
        ranks = way(*problem)
        seconds.append(time.process_time() - started)
    grown = (most_resident() - before) / 1e6
    return {"seconds": statistics.median(seconds), "megabytes": grown, "mrr": ranking_metrics(ranks)["mrr"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args)))
        return

    title = f"{args.queries:,} queries among {args.nodes:,} nodes, d = {args.width}, {args.threads} thread(s)"
    table = Table("way", "processor s", "ratio", "memory, MB", "ratio", "MRR", title=title)
    first: dict[str, float] = {}
    for name in ("sorted", "counted", *map(str, args.blocks)):
        command = [sys.executable, *sys.argv, "--measure", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        first = first or found
        ratios = [first[key] / found[key] for key in ("seconds", "megabytes")]
        label = f"blocks of {name}" if name.isdigit() else f"dense, {name}"
        table.add_row(
            label,
            f"{found['seconds']:.2f}",
            f"{ratios[0]:.1f}",
            f"{found['megabytes']:.1f}",
            f"{ratios[1]:.1f}",
            f"{found['mrr']:.8f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
