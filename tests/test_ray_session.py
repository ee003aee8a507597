"""The rim to Ray: what its errors become, and where its sessions live."""

import errno

import pytest
from ray import exceptions

from optimag_dist.ray_session import translated_ray_errors
from optimag_dist.types import InputError, RunError


def _task_error(cause: Exception) -> Exception:
    return exceptions.RayTaskError("f", "Traceback: of a worker", cause, "f", 1, "127.0.0.1").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (_task_error(InputError("shop.csv: row 7")), InputError, r"^shop.csv: row 7$"),
        (_task_error(RunError("diverged")), RunError, r"^block 3: diverged; again$"),
        (_task_error(OSError(errno.ENOSPC, "full", "/x/part")), RunError, r"^block 3: /x/part: full; "),
        (_task_error(MemoryError()), RunError, r"^block 3: the memory of a host ran out; again$"),
        (_task_error(_task_error(InputError("inner"))), InputError, r"^inner$"),
        (exceptions.ActorDiedError(), RunError, r"^block 3: a process died.*; again$"),
        (exceptions.OutOfMemoryError("a\nb"), RunError, r"memory of a host ran out.*\(a b\); again$"),
        (exceptions.NodeDiedError("n"), RunError, "a host of the cluster was lost"),
        (exceptions.LocalRayletDiedError(), RunError, "session broke down"),
    ],
)
def test_a_ray_error_is_one_of_ours(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as raised, translated_ray_errors("block 3", "again"):
        raise error
    assert not isinstance(raised.value, exceptions.RayError)
    assert raised.value.__cause__ is error


def test_a_defect_in_a_task_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="of a worker"), translated_ray_errors("block 3", "again"):
        raise _task_error(KeyError("x"))
