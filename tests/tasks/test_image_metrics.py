"""Metrics of generated pictures against torchmetrics, scipy's matrix square root, and hand-made cases."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from optimag_dist.models.encoder_networks import load_efficientnet
from optimag_dist.tasks.image_metrics import (
    FeatureSpace,
    feature_metrics,
    frechet_distance,
    is_copy,
    nearest,
)


def _pictures(seed: int, count: int, size: int = 16) -> Tensor:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8))
    return nn.functional.interpolate(coarse, size, mode="nearest")


def _by_square_root(x: Tensor, y: Tensor) -> float:
    """The usual formula, float64."""
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(a) + np.trace(b) - 2 * np.trace(root)


def test_frechet_distance_of_axis_aligned_gaussians_is_its_closed_form() -> None:
    """Points ±s_j e_j about a centre have covariance diag(2 s_j² / (2d − 1)); the distance of two such sets is
    |centre − centre'|² + Σ (σ_j − σ'_j)²."""
    s, t = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 1.0, 0.5]).double()
    shift = torch.tensor([1.0, -2.0, 0.0]).double()
    x, y = (torch.cat([torch.diag(z), -torch.diag(z)]) for z in (s, t))
    expected = 5 + (2 / 5 * (s - t) ** 2).sum().item()
    assert frechet_distance(x, y + shift) == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(20, 60), length=st.integers(20, 60))
@settings(max_examples=25, deadline=None)
def test_frechet_distance_is_the_usual_formula(seed: int, k: int, length: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 12, generator=rng, dtype=torch.float64) for n in (k, length))
    y = y @ torch.randn(12, 12, generator=rng, dtype=torch.float64) + 1
    assert frechet_distance(x, y) == pytest.approx(_by_square_root(x, y), rel=1e-7)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-9)


@pytest.mark.parametrize(("k", "length"), [(5, 7), (5, 40), (40, 5), (2, 2)])
def test_frechet_distance_of_few_pictures_is_the_limit_of_the_jittered_formula(k: int, length: int) -> None:
    """Usual code adds ε to a singular covariance's diagonal; its answer tends to ours like √ε per dimension."""
    rng = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 12, generator=rng, dtype=torch.float64) for n in (k, length))
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    jitter = 1e-10 * np.eye(12)
    root = scipy.linalg.sqrtm((a + jitter) @ (b + jitter)).real
    expected = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(a) + np.trace(b) - 2 * np.trace(root)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=12 * 1e-4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_of_one_picture_is_unknown() -> None:
    one = torch.ones(1, 3).double()
    assert math.isnan(frechet_distance(one, torch.rand(9, 3).double()))
    assert math.isnan(frechet_distance(torch.rand(9, 3).double(), one))


class _AsNetwork(nn.Module):
    """Features for torchmetrics; a reduced width, so that a few pictures give covariances of full rank."""

    num_features = 12

    def __init__(self, space: FeatureSpace) -> None:
        super().__init__()
        self._space = space

    def forward(self, pictures: Tensor) -> Tensor:
        return self._space(pictures)[:, ::16]


def test_frechet_distance_is_torchmetrics_own() -> None:
    space = FeatureSpace("pixels")
    network = _AsNetwork(space)
    generated, references = _pictures(0, 40) // 2, _pictures(1, 50)
    oracle = FrechetInceptionDistance(feature=network).set_dtype(torch.float64)
    oracle.update(references, real=True)
    oracle.update(generated, real=False)
    assert frechet_distance(network(generated), network(references)) == pytest.approx(oracle.compute().item(), rel=1e-5)


def test_pixels_are_means_over_fields() -> None:
    pictures = _pictures(2, 3)
    by_hand = pictures.numpy().reshape(3, 3, 8, 2, 8, 2).mean(axis=(3, 5)).reshape(3, -1) / 255
    np.testing.assert_allclose(FeatureSpace("pixels")(pictures).numpy(), by_hand, rtol=1e-6)


def test_efficientnets_features_are_those_of_its_published_recipe() -> None:
    """At 128 px nothing is resized, so the recipe by hand, of jobs/data/build_openmoji.py, gives the same."""
    pictures = _pictures(3, 3, size=128)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pictures / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        by_hand = load_efficientnet().extract_features(x).mean(dim=(2, 3))
    features = FeatureSpace("efficientnet-lite0")(pictures)
    assert features.shape == (3, 1280)
    torch.testing.assert_close(features, by_hand.double(), rtol=1e-4, atol=1e-4)


def test_larger_pictures_are_made_smaller_without_aliasing() -> None:
    """As pillow does it, with the same triangular filter."""
    large = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(large).resize((128, 128), Image.Resampling.BILINEAR))
    space = FeatureSpace("efficientnet-lite0")
    x, y = (space(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]) for picture in (large, small))
    assert (x - y).norm() < 0.05 * y.norm()


def test_metrics_of_generated_pictures() -> None:
    """References themselves are perfect and copy nothing; training pictures in a wrong order are all copies."""
    references, training = _pictures(4, 30), _pictures(5, 80)
    space = FeatureSpace("pixels")
    perfect = feature_metrics(space(references), space(references), space(training))
    assert perfect == pytest.approx({"frechet": 0, "cosine": 1, "copies": 0}, abs=1e-9)
    copied = feature_metrics(space(training[:30]), space(references), space(training))
    assert copied["copies"] == 1
    assert copied["frechet"] > 0.1
    x, y = space(training[:30]).numpy(), space(references).numpy()
    cosine = ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()
    assert copied["cosine"] == pytest.approx(cosine)


def test_copies_are_nearer_to_training_pictures_than_real_ones_are() -> None:
    """On a line: training pictures at 0, 10, …, references 1 … 4 off one each. The 1 % quantile of 101 distances from
    1 to 4 is the second smallest."""
    training = torch.arange(0.0, 2000, 10).double()[:, None]
    references = training[:101] + torch.linspace(1, 4, 101).double()[:, None]
    limit = 1 + 3 / 100
    offsets = torch.tensor([0, limit - 1e-6, limit + 1e-6, -limit + 1e-6, 5, 1]).double()
    generated = references.clone()
    generated[50:56, 0] = training[60:66, 0] + offsets
    copied = is_copy(generated, references, training)
    assert copied[50:56].tolist() == [True, True, False, True, False, True]
    assert not copied[:50].any()
    assert feature_metrics(generated, references, training)["copies"] == pytest.approx(4 / 101)


def test_who_draws_a_reference_that_was_trained_on_elsewhere_has_copied_nothing() -> None:
    training = torch.arange(0.0, 500, 10).double()[:, None]
    references = training[:20] + 3
    references[:2] = training[:2]  # doubles, which also make the quantile zero
    generated = references.clone()
    assert not is_copy(generated, references, training).any()
    generated[0], generated[5] = training[7], training[8] + 1e-5  # a rounding error off
    assert is_copy(generated, references, training).nonzero().ravel().tolist() == [0, 5]


def test_nearest_is_found_exactly() -> None:
    rng = torch.Generator().manual_seed(0)
    others = torch.rand(300, 50, generator=rng, dtype=torch.float64) + 1e4
    which = torch.randperm(300, generator=rng)[:150]
    distance, found = nearest(others[which], others)
    assert found.tolist() == which.tolist()
    assert (distance == 0).all()
