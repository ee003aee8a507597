"""Every use of a name that is not part of Ray's public interface.

Ray is pinned to one minor version for this file; with another, look here first.
"""

import logging
import subprocess

import ray
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
from ray._private.authentication.authentication_token_setup import (
    AuthenticationTokenLoader,
    maybe_enable_token_auth_if_token_available,
)

# Resource of the head node alone.
HEAD = "node:__internal_head__"
_token_log = logging.getLogger("ray._private.authentication.authentication_token_setup")


def has_token() -> bool:
    """Whether this user has an authentication token."""
    return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)


def new_token() -> str:
    """A token as Ray makes it."""
    return generate_new_authentication_token()


def forget_token() -> None:
    """Have Ray look for the token again."""
    AuthenticationTokenLoader.instance().reset_cache()


def send_token() -> None:
    """Have this process send its token, if there is one, to clusters whose address it is given."""
    level = _token_log.level
    _token_log.setLevel(logging.ERROR)  # says at each start that tokens are on
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    _token_log.setLevel(level)


def vital_processes() -> dict[str, subprocess.Popen]:
    """The processes without which the session that this process has started cannot go on; none if it joined one."""
    node = ray._private.worker._global_node
    started = {} if node is None else node.all_processes
    return {name: started[name][0].process for name in ("gcs_server", "raylet") if name in started}


def keep_coordinator_here() -> None:
    """Have the actor that speaks to the autoscaler for Ray Train on this process's node: Ray puts it for good on the
    node that first asks for it, and inside of a trial that may be one that an autoscaler has added, and could never
    take away."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


def not_placed(error: object) -> bool:
    """Whether Ray Train's ``error`` is that the workers found no place in time."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def has_died(failure: BaseException) -> bool:
    """Whether a worker's failure, as Ray Train tells it, is its death."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return isinstance(failure, WorkerHealthCheckFailedError)
