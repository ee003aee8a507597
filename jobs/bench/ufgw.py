"""Time per UFGW solve on one thread, float32: ours against POT's unbalanced fused GW.

The two do not solve the same problem: POT (``fused_unbalanced_gromov_wasserstein``, KL of product measures) moves two
plans in turn, ours has plain KL and one plan. So this compares what an iteration costs, not answers. Both run 5 steps;
a step of POT is two linearisations with 20 Sinkhorn iterations each, one of ours is one per modality. "Per transport"
is the time of one linearisation with its 20 iterations. Medians of CPU time, which other processes disturb least.

    python jobs/bench/ufgw.py [N ...]
"""

import statistics
import sys
import time
from collections.abc import Callable

import ot
import torch

from optimag_dist.ufgw import anchor_prior, cosine_cost, graph_cost, solve_ufgw

ALPHA, RHO, EPSILON, OUTER, SINKHORN = 0.6, 0.1, 0.01, 5, 20
MODALITIES = 2


def group(nodes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """C_m (2, N, N), C_G and M (N, N) float32 of a graph of communities whose modalities follow it loosely."""
    generator = torch.Generator().manual_seed(seed)
    community = torch.randint(max(2, nodes // 40), (nodes,), generator=generator)
    centres = torch.randn(MODALITIES, int(community.max()) + 1, 64, generator=generator)
    C_m = torch.stack([cosine_cost(c[community] + torch.randn(nodes, 64, generator=generator)) for c in centres])
    same = community[:, None] == community
    walk = torch.rand(nodes, nodes, generator=generator) < torch.where(same, 0.2, 0.01)
    C_G = graph_cost(torch.eye(nodes) * 0.2 + walk * 0.01)
    return C_m, C_G, anchor_prior(C_G)


def ours(nodes: int) -> Callable[[], object]:
    C_m, C_G, M = group(nodes)
    return lambda: solve_ufgw(C_m, C_G, M, alpha=ALPHA, rho=RHO, epsilon=EPSILON, n_outer=OUTER, n_sinkhorn=SINKHORN)


def pot(nodes: int) -> Callable[[], object]:
    C_m, C_G, M = group(nodes)
    return lambda: ot.gromov.fused_unbalanced_gromov_wasserstein(
        C_m[0],
        C_G,
        M=M,
        alpha=(1 - ALPHA) / ALPHA,
        reg_marginals=RHO / ALPHA,
        epsilon=EPSILON / ALPHA,
        max_iter=OUTER,
        tol=0,
        max_iter_ot=SINKHORN,
        tol_ot=0,
    )


def median_ms(call: Callable[[], object], repetitions: int) -> float:
    call()
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times)


def main(sizes: list[int]) -> None:
    torch.set_num_threads(1)
    print("    N  ours, 2 modalities   per transport | POT, 1 modality   per transport   (ms of CPU time)")
    for nodes in sizes:
        repetitions = max(5, 4096 // nodes)
        mine, theirs = median_ms(ours(nodes), repetitions), median_ms(pot(nodes), max(3, repetitions // 4))
        print(
            f"{nodes:5d} {mine:19.1f} {mine / MODALITIES / OUTER:15.2f} | {theirs:15.1f} {theirs / 2 / OUTER:15.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [256, 512, 1024])
