"""Compiled kernels for the CPU: the same steps as in torch's operations, with fewer trips to memory and fewer calls.

Need numba, which the package has and a bare torch does not (:mod:`optimag_dist.ufgw.backend`). Plans come as
π = diag(a) K diag(b); all tensors are C-contiguous, (b, N, N) or (b, N), on the CPU.
"""

from optimag_dist.ufgw.compiled.sinkhorn import sinkhorn
from optimag_dist.ufgw.compiled.sparse import sparse_inner, sparse_right_matmul, sparse_times, subtract_sparse
from optimag_dist.ufgw.compiled.sums import distance, moments, multiply_out, step_length
