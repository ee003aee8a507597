"""Every use of a name that is not part of Ray's public interface.

Ray is pinned to one minor version for this file; with another, look here first.
"""

import logging
import subprocess

import ray
from ray._private.authentication import authentication_token_setup as tokens

# Resource of the head node alone.
HEAD = "node:__internal_head__"


def has_token() -> bool:
    """Whether this user has an authentication token."""
    return tokens.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)


def new_token() -> str:
    """A token as Ray makes it."""
    return tokens.generate_new_authentication_token()


def forget_token() -> None:
    """Have Ray look for the token again."""
    tokens.AuthenticationTokenLoader.instance().reset_cache()


def send_token() -> None:
    """Have this process send its token, if there is one, to clusters whose address it is given."""
    level = tokens.logger.level
    tokens.logger.setLevel(logging.ERROR)  # says at each start that tokens are on
    tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    tokens.logger.setLevel(level)


def vital_processes() -> dict[str, subprocess.Popen]:
    """The processes without which the session that this process has started cannot go on; none if it joined one."""
    node = ray._private.worker._global_node
    started = {} if node is None else node.all_processes
    return {name: started[name][0].process for name in ("gcs_server", "raylet") if name in started}


def keep_coordinator_here() -> None:
    """Have the actor that speaks to the autoscaler for Ray Train on this process's node: Ray puts it for good on the
    node that first asks for it, and inside of a trial that may be one that an autoscaler has added, and could never
    take away. It starts while this process goes on."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

    coordinator.get_or_create_autoscaling_coordinator()


def not_placed(error: object) -> bool:
    """Whether Ray Train's ``error`` is that the workers found no place in time."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def has_died(failure: BaseException) -> bool:
    """Whether a worker's failure, as Ray Train tells it, is its death."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return isinstance(failure, WorkerHealthCheckFailedError)
