"""What ``ufgw.py`` measures of our solver alone: the problem, where the time goes, which form pays, peak memory.

As a program of its own, ``ufgw_parts.py FILE``, it prints the peak memory of a solve of the operands saved there.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.table import Table
from torch import Tensor

from optimag_dist.ufgw import CosineCost, SparseCost, UFGWSolution, costs, problem, solve_ufgw
from optimag_dist.ufgw.costs import Cost
from optimag_dist.ufgw.operands import as_cost, build_problem, check_cost
from optimag_dist.ufgw.sinkhorn import SinkhornResult, sinkhorn_exp
from optimag_dist.ufgw.solver import Budget, outer_steps
from optimag_dist.ufgw.validation import DeferredChecks

# With these weights, width of the anchor cost and PPR of a node to itself, plans are neither the diagonal nor uniform:
# the diagonal holds from 94 % (N = 128, δ = 1 %) to 6 % of the mass (N = 4096, δ = 5 %), and half of all mass is kept.
WEIGHTS = {"alpha": 0.6, "rho": 0.1, "epsilon": 0.03}
TAU, SELF = 1.0, 0.05
OUTER, SINKHORN = 10, 20

Operands = tuple[Cost | Tensor, Cost | Tensor, Cost | Tensor]


@dataclass(frozen=True, eq=False)
class Instance:
    """A group of nodes in communities: PPR mostly among those of one community, embeddings that follow them loosely.

    Attributes:
        nodes, width, density: N, d and the share of pairs with PPR above 0.
        embeddings: (2, N, d) of two modalities.
        proximity: (N, N) PPR.
    """

    nodes: int
    width: int
    density: float
    embeddings: Tensor
    proximity: Tensor

    @staticmethod
    @cache
    def make(nodes: int, width: int, density: float, device: str = "cpu") -> "Instance":
        generator = torch.Generator().manual_seed(nodes)
        of_row = max(2.0, density * nodes) - 1
        size = min(max(4, round(1.5 * of_row)), nodes // 2)
        community = torch.arange(nodes) // size
        inside, outside = 0.8 * of_row / (size - 1), 0.2 * of_row / (nodes - size)
        share = torch.where(community[:, None] == community, min(inside, 1.0), min(outside, 1.0))
        # A pair is stored if either direction is there.
        hit = torch.rand(nodes, nodes, generator=generator) < 1 - (1 - share).sqrt()
        proximity = hit * (0.002 + 0.02 * torch.rand(nodes, nodes, generator=generator))
        proximity.fill_diagonal_(SELF)
        centres = torch.randn(2, int(community.max()) + 1, width, generator=generator)
        embeddings = centres[:, community] + torch.randn(2, nodes, width, generator=generator)
        return Instance(nodes, width, density, embeddings.to(device), proximity.to(device))

    @cached_property
    def costs(self) -> Operands:
        C_G = SparseCost.from_proximity(self.proximity)
        return CosineCost.from_embeddings(self.embeddings[:1]), C_G, C_G.anchor_cost(TAU)

    @cached_property
    def both(self) -> Operands:
        """Of both modalities in one batch."""
        return CosineCost.from_embeddings(self.embeddings), *self.costs[1:]

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same C_m, C_G and M (N, N) written out."""
        C_m, C_G, M = (cost.dense()[0].clamp_min(0) for cost in self.costs)
        return C_m, C_G, M

    @property
    def name(self) -> list[str]:
        return [f"{self.nodes}", f"{self.width}", f"{self.density:.0%}"]

    def objective(self, plan: Tensor) -> float:
        """UFGW with kl_tensor, from its definition and in float64."""
        C_m, C_G, M = self._exact
        pi = plan.to(torch.float64).reshape(1, self.nodes, self.nodes)
        rows, columns, mass = pi.sum(2), pi.sum(1), pi.sum()
        reduced = C_m.factor.mT @ pi
        across = (C_G.right_matmul(reduced) * C_m.signs[:, None] * reduced).sum()
        squares = (C_m.squared_times(rows) * rows).sum() + (C_G.squared_times(columns) * columns).sum()
        _, row, column, near = M.entries(1)

        def divergence(x: Tensor, reference: float) -> Tensor:
            """KL(x⊗x ‖ y⊗y) for a y of mass 1 that is ``reference`` everywhere."""
            return 2 * mass * torch.xlogy(x, x / reference).sum() - mass.square() + 1

        alpha, rho, epsilon = WEIGHTS.values()
        linear = M.constant[0] * mass - (pi[0, row, column] * near).sum()
        marginals = divergence(rows, 1 / self.nodes) + divergence(columns, 1 / self.nodes)
        structure, entropy = squares - 2 * across, divergence(pi, 1 / self.nodes**2)
        return float((1 - alpha) * linear + alpha * structure + rho * marginals + epsilon * entropy)

    @cached_property
    def _exact(self) -> Any:
        return tuple(cost.to(torch.float64) for cost in self.costs)

    @cached_property
    def optimum(self) -> float:
        """The objective at rest: float32 leaves the plan within 1e-6 of it, and the objective within that squared."""
        return self.objective(solve(self.costs, 300, marginal="kl_tensor", tol=3e-6).plan)

    def gap(self, plan: Tensor) -> float:
        """How far ``plan`` is above the optimum, as a share of it."""
        return self.objective(plan) / self.optimum - 1


def solve(operands: Operands, outer: int = OUTER, sinkhorn: int = SINKHORN, **options: Any) -> UFGWSolution:
    return solve_ufgw(*operands, **WEIGHTS, n_outer=outer, n_sinkhorn=sinkhorn, **options)


def build(operands: Operands, marginal: str = "kl") -> problem.UFGWProblem:
    return build_problem(*operands, None, None, **WEIGHTS, marginal=marginal, checks=DeferredChecks())


def table(title: str, columns: str) -> Table:
    found = Table(title=title)
    for column in columns.split(","):
        found.add_column(column, justify="right")
    return found


def iterations_run(instance: Instance, outer: int) -> float:
    """Share of the Sinkhorn iterations of a kl_tensor solve that are run: ours ends where one changes not a bit."""
    done: list[int] = []

    def counting(*operands: Any) -> SinkhornResult:
        found = sinkhorn_exp(*operands)
        done.append(int(found.iterations))
        return found

    outer_steps(build(instance.costs, "kl_tensor"), Budget(outer, SINKHORN), counting)
    return sum(done) / outer / SINKHORN


def seconds(call: Callable[[], object], prepare: Callable[[], object] = lambda: None, least: float = 0.03) -> float:
    """Median processor time of 5 calls or more; ``prepare`` runs before each, untimed."""
    prepare()
    call()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        prepare()
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def of_step(operands: Operands, least: float = 0.2) -> float:
    """Median processor seconds of an outer step: a solve of four less one of two, by which all memory is there."""
    solve(operands, 2)
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        start = time.process_time()
        solve(operands, 2)
        middle = time.process_time()
        solve(operands, 4)
        times.append((time.process_time() - 2 * middle + start) / 2)
    return statistics.median(times)


@dataclass(frozen=True)
class Machine:
    """What one thread can do: float32 operations a second of a large product; floats read and exponentials a second,
    by N of an (N, N) array."""

    flops: float
    read: Mapping[int, float]
    exp: Mapping[int, float]

    @staticmethod
    def measure(sizes: Iterable[int]) -> "Machine":
        square, out = torch.rand(2048, 2048), torch.empty(2048, 2048)
        flops = 2 * 2048**3 / seconds(lambda: torch.mm(square, square, out=out))
        arrays = {n: -torch.rand(2, n, n) for n in sizes}
        read = {n: n * n / seconds(x[0].sum) for n, x in arrays.items()}
        exp = {n: n * n / seconds(lambda x=x: torch.exp(x[0], out=x[1])) for n, x in arrays.items()}
        return Machine(flops, read, exp)

    def __str__(self) -> str:
        rates = "; ".join(f"{n}: {self.read[n] / 2.5e8:.0f} GB/s, {self.exp[n] / 1e9:.1f} G exp/s" for n in self.read)
        return f"One thread here: product {self.flops / 1e9:.0f} Gflop/s; by N of the array read and exp {rates}"


def where_time_goes(instances: Iterable[Instance], machine: Machine) -> Table:
    title = "3  Where the time goes: an outer step with 20 Sinkhorn iterations, kl, one thread; ms, and times its floor"
    columns = "N,d,δ,step,Qᵀπ,·B,Q·,floor,×,absorb exp,floor,×,19 sweeps,floor,×,C²p C²q M,rest,step / floor,start end"
    found = table(title, columns)
    for instance in instances:
        found.add_row(*instance.name, *_parts(instance, machine))
    return found


def _parts(instance: Instance, machine: Machine) -> list[str]:
    N, built = instance.nodes, build(instance.costs)
    # After one step: later Sinkhorn ends early, once an iteration changes not one bit.
    state = outer_steps(built, Budget(1, SINKHORN), sinkhorn_exp)
    plan, at, A, B = state.plan, state.linearised, built.A, built.B
    workspace, entropic = torch.empty_like(plan.kernel), built.entropic()
    cost, x, y = (t.clone() for t in built.linearised_cost(at, workspace))

    def sinkhorn(n: int) -> float:
        return seconds(
            lambda: sinkhorn_exp(workspace, x, y, state.f, state.g, entropic, n), lambda: workspace.copy_(cost)
        )

    if isinstance(A, CosineCost):
        product = (
            seconds(lambda: problem.product_to_few(A.factor * plan.a[:, :, None], plan.kernel)),
            seconds(lambda: B.right_matmul(at.reduced)),
            seconds(lambda: problem.product_to_many(A.factor, at.core, workspace)),
        )
        flops = (4 * N * N + 2 * len(B.indices)) * A.rank
    else:
        right = B.right_matmul(plan.kernel)
        product = 0.0, seconds(lambda: B.right_matmul(plan.kernel)), seconds(lambda: A.values @ right)
        flops = 2 * N**3 + 2 * len(B.indices) * N
    first, full = sinkhorn(1), sinkhorn(SINKHORN)
    linear = seconds(lambda: A.squared_times(plan.rows)) + seconds(lambda: B.squared_times(plan.columns))
    linear += seconds(lambda: built.M.take_off_entries(workspace, 0.4))
    step = of_step(instance.costs)
    whole = seconds(lambda: solve(instance.costs, 1)) - step
    read = N * N / machine.read[N]
    groups = (sum(product), flops / machine.flops), (first, N * N / machine.exp[N] + 2 * read)
    groups = (*groups, (full - first, (SINKHORN - 1) * read))
    ms = [[f"{1e3 * spent:.2f}", f"{1e3 * floor:.2f}", f"{spent / floor:.1f}"] for spent, floor in groups]
    ms[0][:1] = [f"{1e3 * part:.2f}" for part in product]
    rest = step - sum(product) - full - linear
    last = [f"{1e3 * linear:.2f}", f"{1e3 * rest:.2f}", f"{step / sum(floor for _, floor in groups):.1f}"]
    return [f"{1e3 * step:.2f}", *(cell for group in ms for cell in group), *last, f"{1e3 * whole:.2f}"]


def forms(instances: Iterable[Instance]) -> Table:
    """What structured costs bring, and what looking at the input costs."""
    title = "Dense against structured costs: an outer step with 20 Sinkhorn iterations, kl, one thread; ms"
    columns = (
        "N,d,δ,all dense,C_G M sparse,C_m by factor,both,dense / both,checks dense,of a solve,checks both,of a solve"
    )
    found = table(title, columns)
    for instance in instances:
        C_m, C_G, M = instance.costs
        rest = instance.tensors[1:]
        kinds = instance.tensors, (instance.tensors[0], C_G, M), (C_m, *rest), instance.costs
        steps = [of_step(operands) for operands in kinds]
        cells = [f"{1e3 * step:.2f}" for step in steps] + [f"{steps[0] / steps[3]:.1f}"]
        for operands, step in ((kinds[0], steps[0]), (kinds[3], steps[3])):
            checking = seconds(lambda operands=operands: _look(operands))
            cells += [f"{1e3 * checking:.3f}", f"{checking / (OUTER * step):.2%}"]
        found.add_row(*instance.name, *cells)
    return found


def _look(operands: Operands) -> None:
    """Validation of the input, and reading their outcome."""
    checks = DeferredChecks()
    for name, cost in zip(("C_m", "C_G", "M"), operands, strict=True):
        check_cost(checks, name, as_cost(name, cost), symmetric=name != "M")
    checks.settle(torch.ones(1, dtype=torch.bool))


def choices(sizes: Sequence[int]) -> Iterable[Table]:
    """Where each constant that picks a form has its break-even: time without the form over time with it."""

    def filled(title: str, rows: Iterable[tuple[str, Sequence[float]]], columns: Sequence[str]) -> Table:
        found = table(title, ",".join(("", *columns)))
        for name, ratios in rows:
            found.add_row(name, *(f"{ratio:.2f}" for ratio in ratios))
        return found

    def switched(module: Any, name: str, on: float, off: float, time_it: Callable[[], float]) -> float:
        with patch.object(module, name, off):
            without = time_it()
        with patch.object(module, name, on):
            return without / time_it()

    def factor(N: int, share: float) -> float:
        operands = Instance.make(N, round(share * N) - 2, 0.05).costs
        return switched(problem, "_FACTOR_UP_TO", 1e9, 0, lambda: of_step(operands))

    shares = (0.25, 0.4, 0.5, 0.6, 0.75, 1.0)
    rows = ((f"N {N}", [factor(N, s) for s in shares]) for N in sizes if N <= 2048)
    yield filled("_FACTOR_UP_TO: step with dense C_m / by its factor", rows, [f"r/N {s}" for s in shares])

    def sparse(N: int, d: int, share: float) -> float:
        instance = Instance.make(N, d, share)
        return of_step((instance.costs[0], *instance.tensors[1:])) / of_step(instance.costs)

    shares = (0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5)
    rows = ((f"N {N} d {d}", [sparse(N, d, s) for s in shares]) for N in sizes if N <= 2048 for d in (64, 256))
    yield filled("_SPARSE_UP_TO: step with dense C_G, M / sparse", rows, [f"δ {s:.0%}" for s in shares])

    def square(N: int, share: float) -> float:
        """A solve of ``OUTER`` steps squares OUTER + 1 times."""
        directions, v = torch.nn.functional.normalize(torch.randn(1, N, int((share * N) ** 0.5) - 2), dim=2), None
        v = torch.rand(1, N)

        def whole() -> float:
            return seconds(lambda: [c.squared_times(v) for c in [CosineCost(directions, v)] for _ in range(OUTER + 1)])

        with patch.object(costs, "_WRITE_SQUARE_OUT_UP_TO", 0):
            return switched(costs, "_WRITE_SQUARE_OUT", 0, 1e9, whole)

    shares = (1, 2, 4, 6, 8, 12, 16, 32)
    rows = ((f"N {N}", [square(N, s) for s in shares]) for N in sizes)
    yield filled("_WRITE_SQUARE_OUT: C²v of 10 steps by the factor / written out", rows, [f"r²/N {s}" for s in shares])

    def blocks(N: int, r: int, few: bool) -> float:
        left, matrix, out = torch.rand(1, N, r), torch.rand(1, N, N), torch.empty(1, N, N)
        core = left.mT.contiguous()
        to_few = partial(problem.product_to_few, left, matrix)
        call = to_few if few else partial(problem.product_to_many, left, core, out)
        with patch.object(problem, "_BLOCKS_UP_TO_COLUMNS", r):
            return switched(problem, "_FEW_FROM" if few else "_MANY_FROM", 0, 1 << 30, partial(seconds, call))

    kinds = [(r, few) for few in (True, False) for r in (34, 66, 130, 258)]
    rows = ((f"N {N}", [blocks(N, *kind) for kind in kinds]) for N in sorted({768, 1536, 3072, *sizes}))
    names = [f"r {r} to {'few' if few else 'many'}" for r, few in kinds]
    yield filled("_FEW_FROM, _MANY_FROM: product in one piece / in blocks", rows, names)


def peak_memory(instance: Instance, *, dense: bool) -> float:
    """Resident growth of a solve (kl, two modalities in one batch) in N² floats per modality, its input not counted."""
    tensors = (instance.both[0].dense().clamp_min(0), *instance.tensors[1:]) if dense else instance.both
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tensors, Path(folder, "operands"))
        command = [sys.executable, __file__, str(Path(folder, "operands"))]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _grown(file: str) -> float:
    torch.set_num_threads(1)
    operands = torch.load(file, weights_only=False)
    small = Instance.make(64, 16, 0.1)
    solve(small.tensors if isinstance(operands[0], Tensor) else small.both)
    # The most that was ever resident starts again from what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _most_resident()
    solve(operands, 3)
    problems, nodes = operands[0].shape[:2] if isinstance(operands[0], Tensor) else operands[0].directions.shape[:2]
    return (_most_resident() - before) / (4 * nodes**2 * problems)


def _most_resident() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    print(_grown(sys.argv[1]))
