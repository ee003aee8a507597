"""``spmm`` against dense products in float64.

Tolerance: a sum of k products in precision u differs from the exact one by at most (k + 1)·u·Σ|a||x| (each product
and each addition rounds once; Higham, Accuracy and Stability of Numerical Algorithms, §3.1), entry by entry.
"""

import importlib.util
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimag_dist import sparse
from optimag_dist.sparse import default_backend, spmm, torch_sparse_problem

BACKENDS = [
    pytest.param(
        "torch-sparse",
        marks=pytest.mark.skipif(bool(torch_sparse_problem()), reason=f"no torch-sparse: {torch_sparse_problem()}"),
    ),
    "torch",
]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def random_csr(n_dst: int, n_src: int, nnz: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unsorted, with repeated entries, empty rows and empty columns where chance leaves them."""
    rows = torch.randint(n_dst, (nnz,), generator=generator)
    counts = torch.bincount(rows, minlength=n_dst)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return indptr, torch.randint(n_src, (nnz,), generator=generator)


def dense(indptr: Tensor, indices: Tensor, values: Tensor | None, n_src: int) -> Tensor:
    """(n_dst, n_src) float64 on the CPU, repeated entries added up."""
    n_dst = indptr.numel() - 1
    rows = torch.repeat_interleave(torch.arange(n_dst), indptr.cpu().diff())
    entries = torch.ones(indices.numel(), dtype=torch.float64) if values is None else values.detach().cpu().double()
    matrix = torch.zeros(n_dst, n_src, dtype=torch.float64)
    return matrix.index_put_((rows, indices.cpu()), entries, accumulate=True)


def assert_matches_dense(
    indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor, weights: Tensor, backend: str | None
) -> None:
    """Product and both gradients of <Y, weights> within the rounding bound of the module's docstring."""
    y = spmm(indptr, indices, values, x, backend=backend)
    assert y.dtype == x.dtype
    assert y.shape == (indptr.numel() - 1, x.shape[1])
    wanted = [x] if values is None else [x, values]
    grads = torch.autograd.grad((y * weights).sum(), wanted)

    a, x64, w64 = dense(indptr, indices, values, x.shape[0]), x.detach().cpu().double(), weights.cpu().double()
    rows = torch.repeat_interleave(torch.arange(indptr.numel() - 1), indptr.cpu().diff())
    columns = indices.cpu()
    size = dense(indptr, indices, None if values is None else values.abs(), x.shape[0])
    unit = torch.finfo(x.dtype).eps

    def close(got: Tensor, exact: Tensor, terms: int, bound: Tensor) -> bool:
        return bool(((got.detach().cpu().double() - exact).abs() <= (terms + 1) * unit * bound).all())

    assert close(y, a @ x64, indices.numel(), size @ x64.abs())
    assert close(grads[0], a.T @ w64, indices.numel(), size.T @ w64.abs())
    if values is not None:
        exact = (w64[rows] * x64[columns]).sum(-1)
        assert close(grads[1], exact, x.shape[1], (w64[rows] * x64[columns]).abs().sum(-1))


@every_backend
@settings(deadline=None, max_examples=40)
@given(
    n_dst=st.integers(1, 12),
    n_src=st.integers(1, 12),
    nnz=st.integers(0, 60),
    width=st.integers(1, 70),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_product_and_gradients_match_dense(
    backend: str, n_dst: int, n_src: int, nnz: int, width: int, weighted: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    indptr, indices = random_csr(n_dst, n_src, nnz, generator)
    values = torch.randn(nnz, generator=generator, dtype=dtype, requires_grad=True) if weighted else None
    x = torch.randn(n_src, width, generator=generator, dtype=dtype, requires_grad=True)
    weights = torch.randn(n_dst, width, generator=generator, dtype=dtype)
    assert_matches_dense(indptr, indices, values, x, weights, backend)


@every_backend
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(backend: str, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    indptr, indices = random_csr(5, 4, 11, generator)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(11, generator=generator, dtype=torch.float64, requires_grad=True) if weighted else None

    def product(x: Tensor, values: Tensor | None) -> Tensor:
        return spmm(indptr, indices, values, x, backend=backend)

    assert torch.autograd.gradcheck(product, (x, values))


@every_backend
@pytest.mark.parametrize(("n_dst", "n_src", "nnz", "width"), [(0, 3, 0, 4), (3, 0, 0, 4), (3, 3, 0, 4), (3, 4, 3, 0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_empty_shapes(backend: str, n_dst: int, n_src: int, nnz: int, width: int, weighted: bool) -> None:
    indptr = torch.arange(n_dst + 1) if nnz else torch.zeros(n_dst + 1, dtype=torch.int64)
    indices = torch.zeros(nnz, dtype=torch.int64)
    values = torch.ones(nnz, requires_grad=True) if weighted else None
    x = torch.ones(n_src, width, requires_grad=True)
    y = spmm(indptr, indices, values, x, backend=backend)
    assert torch.equal(y, torch.zeros(n_dst, width))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(n_src, width))
    assert values is None or (values.grad is not None and torch.equal(values.grad, torch.zeros(nnz)))


@every_backend
def test_strided_input_and_strided_gradient(backend: str) -> None:
    generator = torch.Generator().manual_seed(2)
    indptr, indices = random_csr(6, 8, 20, generator)
    base = torch.randn(2 * 5, 8, generator=generator)
    x = base[::2].T.requires_grad_()  # neither rows nor columns lie side by side
    weights = torch.randn(5, 6, generator=generator).T
    assert not x.is_contiguous()
    assert_matches_dense(indptr, indices, None, x, weights, backend)


@every_backend
def test_gradients_repeat_bit_by_bit(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    indptr, indices = random_csr(50, 10, 2000, generator)
    x = torch.randn(10, 16, generator=generator, requires_grad=True)
    weights = torch.randn(50, 16, generator=generator)
    first, second = (
        torch.autograd.grad((spmm(indptr, indices, None, x, backend=backend) * weights).sum(), x)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_constant_input_needs_no_gradient() -> None:
    y = spmm(torch.tensor([0, 2]), torch.tensor([0, 1]), None, torch.ones(2, 3))
    assert not y.requires_grad
    assert torch.equal(y, torch.full((1, 3), 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "indptr": torch.tensor([0, 1, 3])}, r"indptr must ascend from 0 to the number of indices, 2"),
        (lambda a: {**a, "indptr": torch.tensor([0, 3, 2])}, r"indptr must ascend"),
        (lambda a: {**a, "indices": torch.tensor([0, 2])}, r"indices must lie in \[0, 2\).*span \[0, 2\]"),
        (lambda a: {**a, "indices": torch.tensor([-1, 0])}, r"indices must lie in"),
        (lambda a: {**a, "indices": torch.tensor([0, 1], dtype=torch.int32)}, r"int64.*int32"),
        (lambda a: {**a, "values": torch.ones(3)}, r"values of shape \(2,\).*got \(3,\)"),
        (lambda a: {**a, "values": torch.ones(2, dtype=torch.float64)}, r"dtype torch.float32.*float64"),
        (lambda a: {**a, "x": torch.ones(2)}, r"x \(n_src, d\).*\(2,\)$"),
        (lambda a: {**a, "backend": "cusparse"}, r"'cusparse': needed one of torch-sparse, torch"),
    ],
)
def test_bad_input_is_named(change: Callable[[dict], dict], message: str) -> None:
    good = {
        "indptr": torch.tensor([0, 1, 2]), "indices": torch.tensor([0, 1]), "values": None, "x": torch.ones(2, 3),
    }  # fmt: skip
    assert spmm(**good).shape == (2, 3)
    with pytest.raises(ValueError, match=message):
        spmm(**change(good))


def test_works_without_torch_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_sparse", None)  # what an import of an absent package does
    spec = importlib.util.spec_from_file_location("sparse_without", sparse.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert "torch_sparse" in without.torch_sparse_problem()
    assert without.default_backend("cpu") == without.default_backend("cuda") == "torch"
    indptr, indices, x = torch.tensor([0, 1]), torch.tensor([1]), torch.eye(2)
    assert torch.equal(without.spmm(indptr, indices, None, x), x[1:])
    with pytest.raises(ValueError, match=r"'torch-sparse' cannot be imported .*use backend='torch'"):
        without.spmm(indptr, indices, None, x, backend="torch-sparse")


def test_cpu_uses_the_faster_kernel() -> None:
    assert default_backend("cpu") == default_backend() == "torch"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here")
def test_matches_dense_on_gpu() -> None:
    generator = torch.Generator().manual_seed(4)
    indptr, indices = (t.cuda() for t in random_csr(40, 30, 500, generator))
    values = torch.randn(500, generator=generator).cuda().requires_grad_()
    x = torch.randn(30, 33, generator=generator).cuda().requires_grad_()
    weights = torch.randn(40, 33, generator=generator).cuda()
    for chosen in {None, "torch", default_backend("cuda")}:
        assert_matches_dense(indptr, indices, values, x, weights, chosen)
        assert_matches_dense(indptr, indices, None, x, weights, chosen)
