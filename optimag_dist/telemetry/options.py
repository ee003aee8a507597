"""Which experiment trackers a run tells of its fits."""

import importlib.util
from urllib.parse import urlsplit

from pydantic import field_validator

from optimag_dist.messages import without_secrets
from optimag_dist.options import Options
from optimag_dist.storage import local
from optimag_dist.types import InputError

# Field of the options → what is imported, and what is installed for it.
_PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}


class TrackingOptions(Options):
    """Trackers besides TensorBoard, which every fit writes; each fit is one run of the tracker.

    Attributes:
        mlflow: tracking URI of MLflow (``http://host:5000``, ``sqlite:////path/mlflow.db``), or a file for a database
            of its own.
        wandb: project of Weights & Biases.
        wandb_offline: write to the fit's directory alone, to be sent later by ``wandb sync``.
    """

    mlflow: str | None = None
    wandb: str | None = None
    wandb_offline: bool = False

    @field_validator("mlflow")
    @classmethod
    def _same_place_from_every_process(cls, uri: str | None) -> str | None:
        if uri is not None and (urlsplit(uri).username is not None or without_secrets(uri) != uri):
            raise ValueError(
                "the URI holds a password or a token, which would be saved with the run; leave it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        return uri if uri is None or ":" in uri else f"sqlite:///{local(uri)}"


def check_trackers(options: TrackingOptions) -> None:
    """Raise ``InputError`` unless the trackers named are installed."""
    for name, package in _PACKAGES.items():
        if getattr(options, name) is not None and importlib.util.find_spec(name) is None:
            raise InputError(
                f"tracking.{name}={getattr(options, name)}: the package {name} is not installed; "
                f"pip install {package} (on every node), or leave the key out"
            )
