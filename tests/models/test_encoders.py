"""Stored features of any unit are something a network can read."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimag_dist.models import ModelOptions, MultimodalModel
from optimag_dist.models.encoders import FrozenEncoder, ModalityEncoder, Scaled
from optimag_dist.store.columns import Columns, ColumnSums


def _columns(rows: Tensor) -> Columns:
    sums = ColumnSums()
    sums.add(rows.numpy(), np.ones(len(rows), bool))
    return sums.columns()


def _second_half(rows: Tensor) -> Tensor:
    scaled = Scaled(rows.shape[1], _columns(rows), affine=True)(rows)
    assert scaled.isfinite().all()
    return scaled[:, rows.shape[1] :]


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("width", [1, 2, 7])
def test_columns_have_mean_0_and_spread_1_whatever_their_unit(width: int, unit: float) -> None:
    rows = (3 + torch.randn(50, width)) * unit * torch.logspace(0, 6, width)
    columns = _second_half(rows)
    torch.testing.assert_close(columns.mean(0), torch.zeros(width), atol=1e-5, rtol=0)
    torch.testing.assert_close(columns.std(0, correction=0), torch.ones(width), atol=1e-5, rtol=1e-5)


def test_one_of_many_columns_weighs_little() -> None:
    torch.testing.assert_close(_second_half(torch.randn(50, 64)).std(0, correction=0), torch.full((64,), 32 / 64))


def test_of_vectors_as_networks_make_them_the_row_alone_is_read() -> None:
    rows = torch.randn(50, 128)
    scaled = Scaled(128, _columns(rows), affine=True)
    torch.testing.assert_close(scaled(rows), nn.functional.layer_norm(rows, (128,)), atol=1e-4, rtol=1e-4)
    # Prices beside shares are none, however many.
    columns = _second_half(rows * torch.logspace(0, 6, 128))
    torch.testing.assert_close(columns.std(0, correction=0), torch.full((128,), 32 / 128))


@pytest.mark.parametrize("rows", [torch.full((5, 1), 0.1), torch.tensor([[3.0, -1e30]]), torch.zeros(4, 3)])
def test_a_column_without_spread_is_0(rows: Tensor) -> None:
    assert not _second_half(rows).any()
    # Of another graph's nodes as well.
    other = Scaled(rows.shape[1], _columns(rows), affine=False)(rows + 1)
    assert other.shape[1] == 2 * rows.shape[1]
    assert not other[:, rows.shape[1] :].any()


def test_outliers_leave_the_rest_finite() -> None:
    rows = torch.randn(1000, 2)
    rows[7] = 3e38
    assert _second_half(rows).abs().max() < 1000**0.5 + 1


@pytest.mark.parametrize("encoder", ["mlp", "frozen"])
def test_what_features_were_scaled_by_is_part_of_the_model(encoder: str) -> None:
    rows = 5 + torch.randn(20, 3) * torch.tensor([1.0, 1e4, 1e-4])
    options = ModelOptions(encoder=encoder, backbone="mlp", dropout=0)
    fitted = MultimodalModel({"facts": 3}, 1, options, columns={"facts": _columns(rows)})
    loaded = MultimodalModel({"facts": 3}, 1, options)
    loaded.load_state_dict(fitted.state_dict())
    assert torch.equal(fitted.encode({"facts": rows})["facts"], loaded.encode({"facts": rows})["facts"])
    assert not any(p.requires_grad for p in (*fitted.encoders[0][0].parameters(recurse=False),))


@pytest.mark.parametrize("kind", ["mlp", "frozen"])
def test_a_model_of_an_earlier_version_computes_what_it_did(kind: str) -> None:
    """Its encoders began with a LayerNorm over the row."""
    if kind == "mlp":
        old = nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 4))
        nn.init.normal_(old[0].weight)
        new: nn.Module = ModalityEncoder(7, 8, 4, 0.0)
    else:
        old = nn.Sequential(nn.LayerNorm(7, elementwise_affine=False), nn.Linear(7, 4, bias=False))
        new = FrozenEncoder(7, 4)
    nn.ModuleList([new]).load_state_dict(nn.ModuleList([old]).state_dict())
    rows = torch.randn(5, 7)
    torch.testing.assert_close(new(rows), old(rows))
