"""Ray Jobs: a recipe is handed to a running cluster and followed; all else is done by ``ray job``."""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from optimag_dist.ray_session import use_token
from optimag_dist.submit.package import STEPS_FILE, write_package
from optimag_dist.submit.recipe import Job
from optimag_dist.types import InputError

_KNOCK_S = 5
_POLL_S = 1
_START_S = 60
# Ray reads it before any address it is given.
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"

# Both tell every request by a line of log.
for _talker in ("dashboard_sdk", "job.sdk"):
    logging.getLogger(f"ray.dashboard.modules.{_talker}").setLevel(logging.WARNING)

Say = Callable[[str], None]


class Jobs:
    """The jobs of the cluster whose dashboard is at ``address``, by default ``RAY_API_SERVER_ADDRESS``; ``InputError``
    where nothing answers there, or it does not accept this user's token. ``say`` is given remarks, a line each."""

    def __init__(self, address: str | None, say: Say = print) -> None:
        address = address or os.environ.get(_ADDRESS_VARIABLE)
        if not address:
            raise InputError(f"which cluster? give --address http://HOST:8265 or set {_ADDRESS_VARIABLE}")
        if not address.startswith(("http://", "https://")):
            address = f"http://{address}"
        self.address = address.rstrip("/")
        if _answers_anyone(self.address):
            say(f"warning: {self.address} asks for no token: whoever reaches it can run programs on the cluster")
        os.environ[_ADDRESS_VARIABLE] = self.address
        use_token()
        try:
            self._client = JobSubmissionClient(self.address)
        except AuthenticationError as error:
            raise InputError(
                f"{self.address} does not accept this user's token: copy the cluster's to ~/.ray/auth_token, or name "
                f"its file by RAY_AUTH_TOKEN_PATH (RAY_AUTH_MODE must not be disabled)"
            ) from error
        except (RuntimeError, ConnectionError, requests.RequestException) as error:
            raise InputError(
                f"{self.address} does not answer as the dashboard of a Ray cluster does: {error}"
            ) from error

    def submit(self, job: Job) -> str:
        """Hand ``job`` over, with its own files, and return the id it has on the cluster."""
        recipe = job.recipe
        deadline = time.monotonic() + _START_S
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "job.zip"
            write_package(job, archive)
            runtime_env: dict[str, Any] = {"working_dir": str(archive), "env_vars": dict(recipe.runtime_env.env_vars)}
            if recipe.runtime_env.pip:
                runtime_env["pip"] = list(recipe.runtime_env.pip)
            asked = {
                # Of the head's path: the virtual environment or image its raylet was started in.
                "entrypoint": f"exec python -m optimag_dist.submit {STEPS_FILE}",
                "submission_id": f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}",
                "runtime_env": runtime_env,
                "metadata": {"name": recipe.name, **recipe.metadata},
                "entrypoint_num_cpus": recipe.entrypoint.num_cpus,
                "entrypoint_num_gpus": recipe.entrypoint.num_gpus,
                "entrypoint_memory": recipe.entrypoint.memory,
                "entrypoint_resources": recipe.entrypoint.resources or None,
                "entrypoint_label_selector": recipe.entrypoint.labels or None,
            }
            while True:
                try:
                    return self._ask("submit_job", **asked)
                except InputError as error:
                    # What a head that is just starting says.
                    if "No available agent" not in str(error):
                        raise
                    if time.monotonic() > deadline:
                        raise InputError(
                            f"{self.address}: the head's agent, which starts jobs, has not come up: another Ray on "
                            f"that machine may have its port (52365); start the head with "
                            f"--dashboard-agent-listen-port=PORT"
                        ) from error
                time.sleep(_POLL_S)

    def follow(self, job: str, write: Say) -> int:
        """Give ``write`` what the job prints until it ends; its entry point's status, 1 where it has none."""
        seen = 0
        waiting = False
        while True:
            info = self.info(job)
            if info.status == JobStatus.PENDING and not waiting:
                waiting = True
                write(f"waiting: {info.message}\n")
            if info.status != JobStatus.PENDING:
                # A connection that drops in between is taken up again where it was.
                seen = asyncio.run(self._tail(job, seen, write))
                info = self.info(job)
            if info.status.is_terminal():
                return 0 if info.status == JobStatus.SUCCEEDED else info.driver_exit_code or 1
            time.sleep(_POLL_S)

    async def _tail(self, job: str, seen: int, write: Say) -> int:
        at = 0
        try:
            async for text in self._client.tail_job_logs(job):
                fresh = text[max(0, seen - at) :]
                at += len(text)
                if fresh:
                    write(fresh)
        except (RuntimeError, OSError):
            pass
        return max(seen, at)

    def info(self, job: str) -> JobDetails:
        """Where the job stands."""
        return self._ask("get_job_info", job)

    def _ask(self, method: str, *args: object, **kwargs: object) -> Any:
        try:
            return getattr(self._client, method)(*args, **kwargs)
        except (RuntimeError, ConnectionError, requests.RequestException) as error:
            raise InputError(f"{self.address}: {error}") from error


def remedy(info: JobDetails) -> str | None:
    """What to do about a job that failed, where that can be told."""
    said = info.message or ""
    if "No module named 'optimag_dist'" in said or "python: not found" in said:
        return (
            "the python that the cluster's head finds first has no optimag_dist: start Ray in an environment or image "
            "that has it, or send it along where only the package itself is missing: ship=true"
        )
    return None


def _answers_anyone(address: str) -> bool:
    """Whether the cluster answers without a token. Ray's own client waits for ever where nobody does."""
    try:
        return requests.get(f"{address}/api/version", timeout=_KNOCK_S).status_code == requests.codes.ok
    except (requests.RequestException, ValueError) as error:
        raise InputError(
            f"nothing answers at {address} ({type(error).__name__}); give the address of the dashboard of a running "
            f"cluster, as ray start --head prints it, or --local to run the job here"
        ) from error
