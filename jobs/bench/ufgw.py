"""Time, answer and memory of UFGW solves of one group of N nodes: ours against POT and fugw on the same problem.

All solve ``marginal="kl_tensor"`` with the same weights (POT takes α, ρ, ε as (1−α)/α, ρ/α, ε/α) and the same float32
costs, which ours knows by their structure (embeddings of d columns, sparse PPR of density δ) and the others as tensors.
Making the costs is nobody's time. POT's numpy backend runs too where N is small enough for it to win, and the better
counts; fugw runs without progress bars and without evaluating its loss in between.

    1  Same settings. An iteration of the others is two transports (π, then γ), an outer step of ours is one. Both
       ratios are given, at as many transports with as many Sinkhorn iterations ("20 steps", the strict one) and at as
       many iterations ("10 steps"), next to how far above the optimum each answer then is.
    2  Same answer, from start to stop: objective within 1e-4 of the optimum. All are told the smallest budget that gets
       there; next to it ours by one recipe for all N, which stops by itself.
    3  Of ours alone (``ufgw_parts.py``): where the time of a step goes, against the flops, bytes and exponentials
       counted for it at this machine's rates; what structured costs and validation makes of it; peak memory.

Times are medians of interleaved runs: processor time on one thread, which other processes disturb least, wall time on
more. The objective is computed by the benchmark, in float64, for all alike.

    python jobs/bench/ufgw.py [--sizes 128 512 1024 2048 4096] [--widths 64 256] [--densities .01 .05] [--threads 1 2]
                              [--quick] [--choices] [--device cuda]
"""

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import ufgw_parts as parts
from rich.console import Console
from rich.table import Table
from torch import Tensor
from ufgw_parts import OUTER, SINKHORN, WEIGHTS, Instance, solve

from optimag_dist.ufgw import CosineCost, graph_costs

ALPHA, RHO, EPSILON = WEIGHTS.values()
CLOSE = 1e-4
# Ours where the answer counts, and the numbers of Sinkhorn iterations of which each may take its best there.
RECIPE, SINKHORN_FOR_ANSWER = {"outer": 100, "sinkhorn": 3, "tol": 2e-2}, (3, 5, 10)
OTHERS = ("POT", "POT numpy", "fugw")
# A run takes minutes above these sizes, and POT's numpy backend does not win above its own.
UP_TO = {"POT": 2048, "POT numpy": 512, "fugw": 1024}
TARGETS = "Targets (one thread, d = 64): N = 512 8 × POT, 16 × fugw; N = 1024 20 × POT; N = 4096 40 × POT."

K = TypeVar("K", bound=Hashable)
Plans = tuple[Tensor, ...]


def pot(C_m: Any, C_G: Any, M: Any, bcd: int, sinkhorn: int) -> Plans:
    solver = importlib.import_module("ot").gromov.fused_unbalanced_gromov_wasserstein
    weights = {"alpha": (1 - ALPHA) / ALPHA, "reg_marginals": RHO / ALPHA, "epsilon": EPSILON / ALPHA}
    budget = {"max_iter": bcd, "max_iter_ot": sinkhorn, "tol": 0, "tol_ot": 0}
    plans: Plans = solver(C_m, C_G, M=M, unbalanced_solver="sinkhorn", **weights, **budget)
    return plans


def pot_numpy(C_m: Tensor, C_G: Tensor, M: Tensor, bcd: int, sinkhorn: int) -> Plans:
    with importlib.import_module("threadpoolctl").threadpool_limits(torch.get_num_threads()):
        return tuple(map(torch.as_tensor, pot(C_m.numpy(), C_G.numpy(), M.numpy(), bcd, sinkhorn)))


class NoBar:
    def add_task(self, *_: Any, **__: Any) -> None: ...
    def update(self, *_: Any, **__: Any) -> None: ...


def fugw(C_m: Tensor, C_G: Tensor, M: Tensor, bcd: int, sinkhorn: int) -> Plans:
    solver = importlib.import_module("fugw.solvers.dense").FUGWSolver
    weights = {"alpha": ALPHA, "rho_s": RHO, "rho_t": RHO, "eps": EPSILON, "reg_mode": "joint"}
    with patch("fugw.solvers.utils._get_progress", lambda **_: nullcontext(NoBar())):
        found = solver(nits_bcd=bcd, nits_uot=sinkhorn, eval_bcd=1 << 30).solve(F=M, Ds=C_m, Dt=C_G, **weights)
    return found["pi"], found["gamma"]


def ours(C_m: Any, C_G: Any, M: Any, outer: int, sinkhorn: int) -> Plans:
    return (solve((C_m, C_G, M), outer, sinkhorn, marginal="kl_tensor").plan,)


SOLVERS: dict[str, Callable[..., Plans]] = {"ours": ours, "POT": pot, "POT numpy": pot_numpy, "fugw": fugw}
PACKAGES = {"ours": "torch", "POT": "ot", "POT numpy": "threadpoolctl", "fugw": "fugw"}


def there(name: str, nodes: int = 0) -> bool:
    """Whether a solver is installed and can be waited for."""
    needed = {PACKAGES[name], PACKAGES[name.split()[0]]}
    return nodes <= UP_TO.get(name, nodes) and all(importlib.util.find_spec(package) for package in needed)


def call_of(name: str, instance: Instance, outer: int, sinkhorn: int) -> Callable[[], Plans]:
    return partial(SOLVERS[name], *(instance.costs if name == "ours" else instance.tensors), outer, sinkhorn)


@dataclass(frozen=True)
class Timed:
    """Median seconds, and what the last call returned."""

    wall: float
    processor: float
    result: Any

    @property
    def seconds(self) -> float:
        return self.processor if torch.get_num_threads() == 1 else self.wall


def interleaved(runs: Mapping[K, tuple[Callable[[], Any], int]]) -> dict[K, Timed]:
    """Each call as often as it says, in turns, so that a noisy spell hits all alike."""
    times: dict[K, list[tuple[float, float]]] = {name: [] for name in runs}
    results = {}
    for turn in range(max(repeats for _, repeats in runs.values())):
        for name, (call, repeats) in runs.items():
            if turn < repeats:
                start = time.perf_counter(), time.process_time()
                results[name] = call()
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    return {name: Timed(*medians[name], results[name]) for name in runs}


def ms(seconds: float | None, mark: str = "") -> str:
    return "–" if seconds is None else f"{mark}{1e3 * seconds:.1f}"


def ratio(theirs: float | None, mine: float) -> str:
    return "–" if theirs is None else f"{theirs / mine:.1f}"


def gap(instance: Instance, plans: Plans) -> str:
    """Of the best of the plans, which of the others' two is not always the same one."""
    best = min(instance.gap(plan) for plan in plans)
    return f"{best:.0e}" if best >= 1e-9 else "<1e-9"


def same_settings(args: argparse.Namespace, console: Console) -> None:
    title = f"1  Same settings: {OUTER} BCD iterations × {SINKHORN} Sinkhorn iterations; ms"
    columns = "N,d,δ,threads,20 steps,each of 2,10 steps,POT,fugw,POT / 20,fugw / 20,POT / 10,fugw / 10"
    table = parts.table(title, columns + ",gap 20,gap 10,POT,fugw")
    of_pot: dict[tuple[int, int], float] = {}
    notes, noise = [], []
    for nodes in args.sizes:
        for threads in args.threads:
            # Several threads above N = 1024: the first d alone, to save time.
            instances = list(made([nodes], args, args.widths[: 1 if nodes > 1024 and threads > 1 else None]))
            torch.set_num_threads(threads)
            found = timed_once(instances, max(2, args.repeats // (1 if nodes <= 1024 else 2)))
            noise += [timed.wall / timed.processor for timed in found.values() if threads == 1]
            extrapolated = nodes > UP_TO["POT"] and there("POT")
            if extrapolated:
                of_pot[nodes, threads], note = extrapolate(instances[0], threads, of_pot)
                notes.append(note)
            for i, instance in enumerate(instances):
                # The others' time does not depend on d: theirs is that of the first d, at this density.
                alike = [j for j, other in enumerate(instances) if other.density == instance.density]
                theirs = {name: found[name, j] for name in OTHERS for j in alike if (name, j) in found}
                best = min(theirs.keys() - {"fugw"}, key=lambda name: theirs[name].seconds, default="")
                spent = {name: theirs[key].seconds for name, key in (("POT", best), ("fugw", "fugw")) if key in theirs}
                of_pot.setdefault((nodes, threads), spent.get("POT", 0.0))
                if extrapolated:
                    spent["POT"] = of_pot[nodes, threads]
                mark = "≈" if extrapolated else "ⁿ" if best == "POT numpy" else ""
                mine = found["20", i], found["10", i]
                both = found["both", i].seconds / 2 if ("both", i) in found else None
                cells = [ms(mine[0].seconds), ms(both), ms(mine[1].seconds)]
                cells += [ms(spent.get("POT"), mark), ms(spent.get("fugw"))]
                cells += [ratio(spent.get(name), timed.seconds) for timed in mine for name in ("POT", "fugw")]
                cells += [gap(instance, timed.result) for timed in mine]
                runs = found.get((best, i)), found.get(("fugw", i))
                cells += [gap(instance, run.result) if run else "–" for run in runs]
                table.add_row(*instance.name, str(threads), *cells)
    console.print(table)
    console.print(
        "20 and 10 steps: outer steps of ours, 20 being as many transports as the others' 10; each of 2: one of a batch"
        " of two modalities, 20 steps;\ngap: objective above the optimum, relative; ⁿ numpy backend; ≈ extrapolated.\n"
        + "\n".join((TARGETS, *notes))
    )
    if noise:
        console.print(f"Wall / processor time on one thread: {statistics.median(noise):.2f}, at most {max(noise):.2f}")


def timed_once(instances: Sequence[Instance], repeats: int) -> dict[tuple[str, int], Timed]:
    runs: dict[tuple[str, int], tuple[Callable[[], Any], int]] = {}
    for i, instance in enumerate(instances):
        runs["20", i] = call_of("ours", instance, 2 * OUTER, SINKHORN), repeats
        runs["10", i] = call_of("ours", instance, OUTER, SINKHORN), repeats
        if torch.get_num_threads() > 1 and instance.nodes <= 2048:
            runs["both", i] = partial(ours, *instance.both, 2 * OUTER, SINKHORN), repeats
        for name in OTHERS if instance.width == instances[0].width else ():
            if there(name, instance.nodes):
                again = min(3, repeats) if instance.nodes <= 1024 else 1
                runs[name, i] = call_of(name, instance, OUTER, SINKHORN), again
    return interleaved(runs)


def pot_in_parts(instance: Instance, sinkhorn: int) -> tuple[float, float]:
    """Seconds of one iteration with POT's start, and of two."""
    found = interleaved({n: (call_of("POT", instance, n, sinkhorn), 1) for n in (1, 2)})
    return found[1].seconds, found[2].seconds


def extrapolate(instance: Instance, threads: int, of_pot: Mapping[tuple[int, int], float]) -> tuple[float, str]:
    """POT's seconds for all its iterations, and how they were come by."""
    N = instance.nodes
    one, two = pot_in_parts(instance, SINKHORN)
    whole = one + (OUTER - 1) * (two - one)
    note = f"POT, N = {N}, threads {threads}: one iteration took {one:.1f} s, two {two:.1f} s, so ten {whole:.0f} s"
    if half := of_pot.get((N // 2, threads)):
        square, out = torch.rand(N // 2, N // 2), torch.empty(N // 2, N // 2)
        timed = interleaved({0: (lambda: torch.mm(square, square, out=out), 5)})[0]
        products = min(4 * OUTER * timed.seconds, half)
        low, high = 4 * (half + products), 8 * half
        note += f". From the {half:.1f} s at N = {N // 2}, {products / half:.0%} of it dense products: "
        note += f"{low:.0f} s (these × 8, the rest × 4) to {high:.0f} s (all × 8)"
    return whole, note


def same_answer(args: argparse.Namespace) -> Table:
    recipe = ", ".join(f"n_{name}={value}" if name != "tol" else f"tol={value:g}" for name, value in RECIPE.items())
    title = f"2  From start to a gap of {CLOSE:.0e}, d = {args.widths[0]}, one thread; ms. Ours by itself: {recipe}"
    columns = "N,δ,itself,steps,gap,ours,steps × Sinkhorn,POT,BCD × Sinkhorn,fugw,BCD × Sinkhorn"
    table = parts.table(title, columns + ",POT / itself,POT / ours,fugw / itself,fugw / ours")
    torch.set_num_threads(1)
    of_one_and_two: dict[int, tuple[float, float]] = {}
    # By solver and density: Sinkhorn iterations and how many steps were enough for the last N, the best first.
    enough: dict[tuple[str, float], dict[int, int]] = {}
    for instance in made(args.sizes, args, args.widths[:1]):
        runs: dict[Any, tuple[Callable[[], Any], int]] = {}
        few = instance.nodes > 1024
        for name in ("ours", "POT", "fugw"):
            known = enough.get((name, instance.density), dict.fromkeys(SINKHORN_FOR_ANSWER, 4))
            # Above N = 1024 only the number of Sinkhorn iterations that was best below.
            for sinkhorn, outer in list(known.items())[: 1 if few else None]:
                if there(name, instance.nodes):
                    outer = least(name, instance, sinkhorn, outer)
                    again = 1 if few and name != "ours" else min(3, args.repeats)
                    runs[name, outer, sinkhorn] = call_of(name, instance, outer, sinkhorn), again
        runs["itself", 0, 0] = partial(solve, instance.costs, **RECIPE, marginal="kl_tensor"), args.repeats
        timed = interleaved(runs)
        itself = timed.pop(("itself", 0, 0))
        cells = [ms(itself.seconds), str(itself.result.status.n_outer), gap(instance, (itself.result.plan,))]
        spent = {}
        for name in ("ours", "POT", "fugw"):
            ways = {key[1:]: t.seconds for key, t in timed.items() if key[0] == name}
            extrapolated = not ways and name == "POT" and there(name)
            if extrapolated:
                # With what was enough for the last N.
                sinkhorn, outer = next(iter(enough.get((name, instance.density), {SINKHORN: OUTER}).items()))
                if instance.nodes not in of_one_and_two:
                    of_one_and_two[instance.nodes] = pot_in_parts(instance, sinkhorn)
                one, two = of_one_and_two[instance.nodes]
                ways[outer, sinkhorn] = one + (outer - 1) * (two - one)
            order = sorted(ways, key=lambda way: ways[way])
            enough[name, instance.density] = {sinkhorn: outer for outer, sinkhorn in order}
            spent[name] = ways[order[0]] if order else None
            cells += [ms(spent[name], "≈" if extrapolated else "")]
            cells += [f"{order[0][0]} × {order[0][1]}" if order else "–"]
        mine = itself.seconds, spent["ours"] or 1.0
        table.add_row(*instance.name[::2], *cells, *(ratio(spent[name], t) for name in ("POT", "fugw") for t in mine))
    return table


def least(name: str, instance: Instance, sinkhorn: int, start: int) -> int:
    """The fewest steps that come close, looked for from ``start`` on; 60 where there are none."""

    def close(steps: int) -> bool:
        return min(instance.gap(plan) for plan in call_of(name, instance, steps, sinkhorn)()) <= CLOSE

    steps = start
    if close(steps):
        while steps > 1 and close(steps - 1):
            steps -= 1
    else:
        steps += 1
        while steps < 60 and not close(steps):
            steps += 1
    return steps


def same_problem(instance: Instance) -> str:
    """Both run out in float64."""
    C_m, C_G, M = (cost.to(torch.float64) for cost in instance.costs)
    mine = solve((C_m, C_G, M), 200, marginal="kl_tensor").plan
    pi, _ = pot(*(cost.dense()[0] for cost in (C_m, C_G, M)), 60, SINKHORN)
    return f"{float((pi - mine).abs().sum() / mine.sum()):.0e} of the mass (N {instance.nodes}, δ {instance.name[2]})"


def on_cuda(width: int, density: float, repeats: int) -> Table:
    """Ours next to POT on one GPU, by its own clock; POT solves one modality."""
    title = f"{torch.cuda.get_device_name()}, d = {width}, δ = {density:.0%}; ms. Targets: 1 ms and 15 ms"
    columns = "N,modalities,kl 10 × 20,kl_tensor 10 × 20,kl_tensor 20 × 20,POT 10 BCD × 20,POT / 20 each,POT / 10 each"
    table = parts.table(title, columns + ",gap 20,peak (kl) in N² each")
    for nodes, modalities in ((512, 2), (4096, 1)):
        instance = Instance.make(nodes, width, density, "cuda")
        graph = graph_costs(instance.proximity, tau=parts.TAU)
        costs = CosineCost.from_embeddings(instance.embeddings[:modalities]), *graph
        calls = {name: partial(solve, costs, n, marginal="kl_tensor") for name, n in (("10", OUTER), ("20", 2 * OUTER))}
        calls["kl"] = partial(solve, costs)
        if there("POT"):
            calls["POT"] = partial(pot, *instance.tensors, OUTER, SINKHORN)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        calls["kl"]()
        peak = (torch.cuda.max_memory_allocated() - before) / (4 * nodes**2 * modalities)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(repeats + 1):
            for name, call in calls.items():
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                torch.cuda.synchronize()
                start.record()
                call()
                end.record()
                end.synchronize()
                times[name] += [start.elapsed_time(end) / 1e3] if turn else []
        spent = {name: statistics.median(column) for name, column in times.items()}
        plan = calls["20"]().plan.reshape(modalities, nodes, nodes)[0]
        cells = [ms(spent.get(name)) for name in ("kl", "10", "20", "POT")]
        cells += [ratio(spent.get("POT"), spent[name] / modalities) for name in ("20", "10")]
        table.add_row(str(nodes), str(modalities), *cells, gap(instance, (plan,)), f"{peak:.1f}")
    return table


def made(sizes: Sequence[int], args: argparse.Namespace, widths: Sequence[int] = ()) -> Iterator[Instance]:
    return (Instance.make(N, d, density) for N in sizes for d in widths or args.widths for density in args.densities)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="N = 128 and 512, d = 64, one thread")
    parser.add_argument("--choices", action="store_true", help="only where the constants that pick a form break even")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.widths, args.threads, args.repeats = [128, 512], [64], [1], 3
    console = Console(width=160)
    torch.set_num_threads(1)
    for name in ("POT", "fugw"):
        if not there(name):
            console.print(f"{name} is not installed: its columns stay empty")
    if args.device == "cuda":
        console.print(on_cuda(args.widths[0], args.densities[-1], 4 * args.repeats))
    elif args.choices:
        for table in parts.choices(args.sizes):
            console.print(table)
    else:
        on_cpu(args, console)


def on_cpu(args: argparse.Namespace, console: Console) -> None:
    small = Instance.make(64, 16, 0.1)
    for threads in args.threads:  # compile, and start the threads
        torch.set_num_threads(threads)
        timed_once([small], 1)
    same_settings(args, console)
    torch.set_num_threads(1)
    checked = list(made([N for N in args.sizes if N <= 512], args, args.widths[:1]))
    ran = ", ".join(f"{parts.iterations_run(x, 2 * OUTER):.0%} (N {x.nodes}, δ {x.name[2]})" for x in checked)
    console.print(f"Ours ends Sinkhorn where an iteration changes not a bit. Of its 20 × 20 it ran {ran}")
    if there("POT"):
        console.print(f"Run out in float64, POT's plan and ours differ by {', '.join(map(same_problem, checked))}")
    console.print(same_answer(args))
    machine = parts.Machine.measure(args.sizes)
    few = argparse.Namespace(widths=args.widths, densities=args.densities[-1:])
    console.print(parts.where_time_goes(made(args.sizes, few), machine))
    console.print(str(machine))
    console.print(parts.forms(made([N for N in args.sizes if N <= 2048], few)))
    table = parts.table(
        "Peak memory of a solve, kl, in N² floats a modality, input not counted", "N,structured,tensors"
    )
    for instance in made([N for N in args.sizes if N >= 512], few, args.widths[:1]):
        dense = f"{parts.peak_memory(instance, dense=True):.1f}" if instance.nodes <= 2048 else "–"
        table.add_row(instance.name[0], f"{parts.peak_memory(instance, dense=False):.1f}", dense)
    console.print(table)


if __name__ == "__main__":
    main()
