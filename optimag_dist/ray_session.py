"""The one place that starts or joins Ray."""

import logging
import os
import socket

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from optimag_dist.types import InputError

_KNOCK_S = 5


def ensure_ray(address: str | None = None, num_cpus: int | None = None) -> None:
    """Connect to Ray, unless this process already is.

    Args:
        address: of a running cluster. Default: the cluster of the surrounding Ray job (Ray sets ``RAY_ADDRESS``
            there), otherwise an embedded instance that ends with this process.
        num_cpus: cores an embedded instance offers; default: all. A running cluster has its own count.

    Raises:
        InputError: there is no cluster at ``address``, or it does not accept this user's token.
    """
    if ray.is_initialized():
        return
    # Plain ray.init() would join whatever cluster it finds on the host; an embedded run must not depend on that.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        _knock(address)
        # What `ray start` does by itself: clusters ask for the token by default, and a client that is given an address
        # would not send it. Setting RAY_AUTH_MODE here would be too late, Ray has read it when it was imported.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ray.init(
            address=address,
            num_cpus=num_cpus if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise InputError(
            f"no Ray cluster accepts this process at {address}: is it running there (ray status), and is its token in "
            f"~/.ray/auth_token, or named by RAY_AUTH_TOKEN_PATH? {error}"
        ) from error


def _knock(address: str) -> None:
    """Ray itself tries for many minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise InputError(
            f"nothing answers at {address} ({error}); give the address of a running Ray head, as ray start --head "
            f"prints it, or none to train on this machine alone"
        ) from error
