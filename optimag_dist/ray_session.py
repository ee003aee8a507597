"""The one place that starts or joins Ray, and how numbered tasks are handed to it."""

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterable, Sequence

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from optimag_dist.types import InputError

_KNOCK_S = 5
# Tasks handed to Ray per process that works: one that runs, one that waits, so that no core idles and Ctrl-C cancels
# quickly.
IN_FLIGHT = 2

# Hands a number to Ray.
Slot = Callable[[int], ray.ObjectRef]


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


def task_slots(submit: Slot) -> Sequence[Slot]:
    """As many places for tasks as keep the cluster's cores busy."""
    return [submit] * max(1, int(IN_FLIGHT * ray.cluster_resources().get("CPU", 1)))


def completed(slots: Sequence[Slot], indices: Iterable[int]) -> Generator[tuple[int, ray.ObjectRef], None, None]:
    """Hand ``indices`` to free ``slots`` and yield each with its task, as they end; leaving early (close it) cancels
    what is still out."""
    waiting = iter(indices)
    free = list(slots)
    in_flight: dict[ray.ObjectRef, tuple[int, Slot]] = {}
    try:
        while True:
            while free and (index := next(waiting, None)) is not None:
                slot = free.pop(0)
                in_flight[slot(index)] = index, slot
            if not in_flight:
                return
            done, _ = ray.wait(list(in_flight), num_returns=1)
            index, slot = in_flight.pop(done[0])
            free.append(slot)
            yield index, done[0]
    finally:
        for reference in in_flight:
            ray.cancel(reference)
