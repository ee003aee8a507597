"""The one place that starts or joins Ray, and how numbered tasks are handed to it."""

import atexit
import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray import exceptions

from optimag_dist import ray_private
from optimag_dist.messages import said_by_system
from optimag_dist.private_folder import private_folder
from optimag_dist.types import InputError, RunError

_KNOCK_S = 5
_LOOK_S = 1.0
_TOKEN = ".ray/auth_token"
# What Ray is given of a session's folder, and the longest path of a socket below it.
_RAYS_OWN = "r"
_SESSION_BYTES = len(f"/{_RAYS_OWN}/session_2026-01-01_12-00-00_123456_4194304/sockets/dash_MetricsHead")
# Letters of what Ray says that are passed on.
_WORDS = 300
# Tasks handed to Ray per process that works: one that runs, one that waits, so that no core idles and Ctrl-C cancels
# quickly.
IN_FLIGHT = 2

# Hands a number to Ray.
Slot = Callable[[int], ray.ObjectRef]

# What ended a process, by the first class that fits.
_DEATHS: dict[type[BaseException] | tuple[type[BaseException], ...], str] = {
    exceptions.OutOfMemoryError: (
        "the memory of a host ran out and Ray ended a process there: use fewer workers or smaller blocks, or "
        "hosts with more memory"
    ),
    (exceptions.OutOfDiskError, exceptions.ObjectStoreFullError): (
        "Ray's object store is full, in /dev/shm or on the disk it spills to: make room (optimag doctor)"
    ),
    exceptions.NodeDiedError: "a host of the cluster was lost",
    exceptions.RayActorError: "a process died, by a signal, for want of memory or with its host",
    exceptions.WorkerCrashedError: "a process died, by a signal, for want of memory or with its host",
    exceptions.ObjectLostError: "a host or a process was lost, and results of it with it",
    (exceptions.LocalRayletDiedError, exceptions.RpcError, exceptions.RaySystemError): "the Ray session broke down",
    exceptions.GetTimeoutError: "Ray did not answer in time",
    exceptions.TaskCancelledError: "the work was cancelled",
    exceptions.RuntimeEnvSetupError: "a node could not set up what the job asks for (runtime_env)",
    (exceptions.TaskUnschedulableError, exceptions.ActorUnschedulableError): "no node of the cluster can run it",
}


def explained(error: BaseException) -> InputError | RunError | None:
    """What a Ray error comes to: the error of this package that a task or an actor raised, or a sentence about what was
    lost; None where it is neither, so that its traceback is of use."""
    if isinstance(error, InputError | RunError) and not isinstance(error, exceptions.RayError):
        return error
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    if cause is not error and isinstance(cause, BaseException):
        if isinstance(cause, OSError):
            return RunError(said_by_system(cause))
        return RunError("the memory of a host ran out") if isinstance(cause, MemoryError) else explained(cause)
    if isinstance(error, exceptions.RayActorError) and error.actor_init_failed:
        return None
    for kind, what in _DEATHS.items():
        if isinstance(error, kind):
            # Of Ray's own words the first sentence tells which; the rest is advice on Ray.
            return RunError(f"{what} ({' '.join(str(error).split())[:_WORDS]})")
    return None


@contextmanager
def translated_ray_errors(what: str, go_on: str) -> Iterator[None]:
    """Turn Ray's own errors within the block into this package's. ``InputError``: a task or an actor raised it, as it
    did. ``RunError``: a process, a host or the session was lost, memory or disk were full: ``what`` was done (``PPR
    block 3 of 7``), why, and how to ``go_on`` (``go on with --resume``)."""
    try:
        yield
    except exceptions.RayError as error:
        ours = explained(error)
        if ours is None:
            raise
        raise ours if isinstance(ours, InputError) else RunError(f"{what}: {ours}; {go_on}") from error


def ensure_ray(address: str | None = None, num_cpus: int | None = None) -> None:
    """Connect to Ray, unless this process already is.

    An embedded instance asks for the user's token (``RAY_AUTH_MODE=disabled`` in the environment turns that off) and
    shows its dashboard to this machine alone; its files are in a folder that no other user can enter. ``InputError``:
    no cluster at ``address`` accepts this user, or there is no place for an embedded one's folder. ``RunError``: an
    embedded one does not start.

    Args:
        address: of a running cluster. Default: the cluster of the surrounding Ray job (Ray sets ``RAY_ADDRESS``
            there), otherwise an embedded instance that ends with this process.
        num_cpus: cores an embedded instance offers; default: all. A running cluster has its own count.
    """
    if ray.is_initialized():
        return
    # Plain ray.init() would join whatever cluster it finds on the host; an embedded run must not depend on that.
    named = address or os.environ.get("RAY_ADDRESS") or "local"
    if named == "local":
        _make_token()
        use_token()
        _embed(num_cpus)
        return
    _knock(named, "--address" if address else "RAY_ADDRESS")
    use_token()
    try:
        ray.init(address=named, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, exceptions.AuthenticationError) as error:
        raise InputError(
            f"no Ray cluster accepts this process at {named}: is it running there (ray status), and is its token in "
            f"~/.ray/auth_token, or named by RAY_AUTH_TOKEN_PATH? {error}"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the Ray cluster at {named} cannot be joined: {error}") from error


def _embed(num_cpus: int | None) -> None:
    """Start a session of this process's own, in a folder that no other user may enter."""
    # Ray Train would start an actor for each group of workers that looks whether one of the hosts is being taken away.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A machine that is busy is given a second chance.
    for attempt in (1, 2):
        folder = session_folder()
        # Before the folder goes: what is registered last is called first.
        atexit.register(ray.shutdown)
        before = os.environ.get("TMPDIR")
        # Processes put there what they would leave in /tmp: Ray ends its workers by a signal.
        os.environ["TMPDIR"] = str(folder)
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
                # Ray opens it and all below to everyone; not the one around it.
                _temp_dir=str(folder / _RAYS_OWN),
            )
            threading.Thread(target=_tell_when_lost, args=(ray_private.vital_processes(),), daemon=True).start()
            return
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                said = (str(error).strip() or type(error).__name__).splitlines()[0][:_WORDS]
                raise RunError(
                    f"Ray does not start on this machine ({said}): it may be too busy, or short of "
                    f"memory, disk or processes (optimag doctor). Run the same command again, or start Ray by hand, "
                    f"ray start --head, and give --address"
                ) from error
        finally:
            del os.environ["TMPDIR"]
            os.environ.update({} if before is None else {"TMPDIR": before})


def _tell_when_lost(vital: dict[str, subprocess.Popen]) -> None:
    """Watch the processes without which an embedded session cannot go on: Ray ends this process within a minute of
    their death, without an exception, and with no more than its own log."""
    while vital and ray.is_initialized() and ray_private.vital_processes() == vital:
        time.sleep(_LOOK_S)
        dead = [name for name, process in vital.items() if process.poll() is not None]
        time.sleep(_LOOK_S)
        # A session that is shut down loses them, too.
        if dead and ray.is_initialized():
            print(
                f"optimag: the Ray session broke down, its {dead[0]} died, by a signal or for want of memory; this "
                f"process ends within a minute. What is finished is kept: run the same command again, train and tune "
                f"with --resume",
                file=sys.stderr,
                flush=True,
            )
            return


def session_folder() -> Path:
    """Make the folder of an embedded session, see :func:`private_folder`."""
    return private_folder(below=_SESSION_BYTES)


def use_token() -> None:
    """Send this user's token with what this process asks of clusters, if there is one, and keep its file private. What
    ``ray start`` does by itself: a client that is given an address would not send it. Setting ``RAY_AUTH_MODE`` would
    be too late, Ray has read it when it was imported."""
    ray_private.send_token()
    # No file, or a user without a home folder.
    with suppress(OSError, RuntimeError):
        file = Path.home() / _TOKEN
        found = file.stat()
        # Ray writes it with the modes of any file, readable by all.
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & 0o077:
            file.chmod(0o600)


def _make_token() -> None:
    """Make this user's token where there is none, as Ray would, but for the user alone to read."""
    if ray_private.has_token():
        return
    token = ray_private.new_token()
    try:
        file = Path.home() / _TOKEN
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".") as part:
            part.write(token)
            part.flush()
            with suppress(FileExistsError):  # Another process was faster; its token is this user's.
                os.link(part.name, file)
    except (OSError, RuntimeError):
        # A home that is not there or cannot be written to: this process and its children alone know the token.
        os.environ["RAY_AUTH_TOKEN"] = token
    ray_private.forget_token()


def _knock(address: str, given: str) -> None:
    """Ray itself tries for many minutes before it says that nobody is there."""
    if address == "auto":
        return
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"{given} {address}: that is a dashboard's address, for optimag submit; needed HOST:PORT of a running Ray "
            f"head, as ray start --head prints it (port 6379 by default)"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InputError(
            f"{given} {address}: needed HOST:PORT of a running Ray head, as ray start --head prints it, "
            f"such as {host or address}:6379; or none to train on this machine alone"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, UnicodeError) as error:
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


def task_device(asked: str) -> str:
    """``cpu`` or ``cuda``, given ``auto``, ``cpu`` or ``cuda`` and what the connected cluster has; ``InputError`` where
    it has no GPU for ``cuda``."""
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    if asked == "cuda" and not has_gpu:
        raise InputError("device=cuda, but the Ray cluster has no GPU; use device=cpu or device=auto")
    return "cuda" if asked != "cpu" and has_gpu else "cpu"
