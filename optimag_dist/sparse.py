"""Sparse-dense product on CSR rows: one call, two kernels, torch-sparse or torch's own.

Both kernels share one backward, so gradients do not depend on which is used:

    Y   = A X           A (n_dst, n_src) given by indptr, indices, values
    ∂X  = Aᵀ ∂Y         the same kernel on the transpose
    ∂a_e = <∂Y[row(e)], X[col(e)]>   for every stored entry e

torch's own CSR kernel is ``embedding_bag`` (a bag is a row): on one thread it takes an eighth of torch-sparse's time
(0.11 and 0.94 ms for 10,000 arcs, width 128), so it is the default on the CPU; on a GPU torch-sparse is, if its build
has GPU kernels.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

Backend = Literal["torch-sparse", "torch"]
Kernel = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


@functools.cache
def torch_sparse_problem() -> str:
    """Why torch-sparse cannot be used; empty where it can. It is imported here alone: it compiles scripts at that."""
    try:
        import torch_sparse  # noqa: F401
    except Exception as error:  # a wheel built for another torch fails with OSError, a CUDA mismatch with RuntimeError
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def default_backend(device: str | torch.device = "cpu") -> Backend:
    """The kernel :func:`spmm` uses for tensors on ``device`` unless told otherwise."""
    if torch.device(device).type != "cuda" or torch_sparse_problem():
        return "torch"
    return "torch-sparse" if torch.ops.torch_sparse.cuda_version() != -1 else "torch"


def spmm(
    indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor, *, backend: Backend | None = None
) -> Tensor:
    """Row i of the result, (n_dst, d) of the dtype of ``x``, is Σ_e values[e] · x[indices[e]] over e in indptr[i] …
    indptr[i + 1] − 1; zero without entries. Differentiable once, with respect to ``x`` and ``values``.

    Args:
        indptr: (n_dst + 1,) int64, ascending from 0 to nnz.
        indices: (nnz,) int64 in [0, n_src).
        values: (nnz,) of the dtype of ``x``, or None for ones.
        x: (n_src, d) float32 or float64.
        backend: "torch-sparse" or "torch"; None chooses by the device.

    Raises:
        ValueError: shapes or dtypes do not fit; on the CPU also when ``indptr`` or ``indices`` leave their range
            (on a GPU that check would wait for the device).
    """
    _check(indptr, indices, values, x)
    chosen = backend or default_backend(x.device)
    if chosen not in _KERNELS:
        raise ValueError(f"backend {chosen!r}: needed one of {', '.join(_KERNELS)}")
    if chosen == "torch-sparse" and (problem := torch_sparse_problem()):
        raise ValueError(f"backend 'torch-sparse' cannot be imported ({problem}); use backend='torch'")
    return _SpMM.apply(indptr, indices, values, x, _KERNELS[chosen])


def _product(kernel: Kernel, indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor) -> Tensor:
    if x.numel() == 0:  # torch-sparse divides by zero (which ends the process), embedding_bag raises
        return x.new_zeros(indptr.numel() - 1, x.shape[1])
    return kernel(indptr, indices, values, x)


def _torch_sparse_product(indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor) -> Tensor:
    # Detached: the operator brings its own autograd, and then asks for the transpose before it is needed.
    entries = None if values is None else values.detach()
    return torch.ops.torch_sparse.spmm_sum(None, indptr, indices, entries, None, None, x.detach())


def _torch_product(indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor) -> Tensor:
    return embedding_bag(indices, x, indptr, mode="sum", per_sample_weights=values, include_last_offset=True)


_KERNELS: dict[str, Kernel] = {"torch-sparse": _torch_sparse_product, "torch": _torch_product}


class _SpMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor, kernel: Kernel) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(indptr, indices, values, x)
        ctx.kernel = kernel
        return _product(kernel, indptr, indices, values, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        indptr, indices, values, x = ctx.saved_tensors
        grad = grad.contiguous()
        n_dst, nnz = indptr.numel() - 1, indices.numel()
        rows = torch.repeat_interleave(torch.arange(n_dst, device=indptr.device), indptr.diff(), output_size=nnz)
        grad_values = (grad[rows] * x[indices]).sum(-1) if ctx.needs_input_grad[2] else None
        grad_x = None
        if ctx.needs_input_grad[3]:
            # Stable, so that the sum over a column is taken in one order and gradients repeat bit by bit.
            order = torch.argsort(indices, stable=True)
            column_ptr = indptr.new_zeros(x.shape[0] + 1)
            column_ptr[1:] = torch.bincount(indices, minlength=x.shape[0]).cumsum(0)
            entries = None if values is None else values[order]
            grad_x = _product(ctx.kernel, column_ptr, rows[order], entries, grad)
        return None, None, grad_values, grad_x, None


def _check(indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor) -> None:
    if indptr.ndim != 1 or indptr.numel() < 1 or indices.ndim != 1 or x.ndim != 2:
        raise ValueError(
            f"needed indptr (n_dst + 1,), indices (nnz,) and x (n_src, d); got shapes {tuple(indptr.shape)}, "
            f"{tuple(indices.shape)} and {tuple(x.shape)}"
        )
    if indptr.dtype != torch.int64 or indices.dtype != torch.int64:
        raise ValueError(f"needed int64 indptr and indices; got {indptr.dtype} and {indices.dtype}")
    if values is not None and (values.shape != indices.shape or values.dtype != x.dtype):
        raise ValueError(
            f"needed values of shape {tuple(indices.shape)} and dtype {x.dtype}; "
            f"got {tuple(values.shape)} and {values.dtype}"
        )
    if x.device.type != "cpu":
        return
    nnz, n_src = indices.numel(), x.shape[0]
    if int(indptr[0]) != 0 or int(indptr[-1]) != nnz or (indptr.numel() > 1 and int(indptr.diff().min()) < 0):
        raise ValueError(f"indptr must ascend from 0 to the number of indices, {nnz}; got {indptr}")
    if nnz and (int(indices.min()) < 0 or int(indices.max()) >= n_src):
        raise ValueError(
            f"indices must lie in [0, {n_src}) for x with {n_src} rows; "
            f"they span [{int(indices.min())}, {int(indices.max())}]"
        )
