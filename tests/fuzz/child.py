"""The process that runs the cases, one after the other, and may die of one: ``python -m tests.fuzz.child FOLDER``.

Reads a request a line, ``{"case": …, "command": …, "numbers": [[…], …]}``, and answers with two: what was changed,
before anything is run, and what came of it.
"""

import contextlib
import faulthandler
import io
import json
import os
import resource
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

# What the warmed-up process may take beyond what it has, and the largest file it may write.
_SPARE_BYTES, _FILE_BYTES = 6 << 30, 1 << 30
_MESSAGE_CHARACTERS = 6000


def main(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # Whatever C code prints must not get between the answers.
    errors = os.open(folder / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    faulthandler.enable()

    import ray
    import torch

    from optimag_dist.types import RunError

    from .cases import CASES, PROBES

    torch.set_num_threads(1)
    # No power cut is tried here.
    os.fsync = lambda descriptor: None

    def no_ray(*_: Any, **__: Any) -> None:
        raise RunError("no Ray while fuzzing")

    ray.init = no_ray
    good: dict[tuple[str, str], Any] = {}
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    for line in sys.stdin:
        request = json.loads(line)
        name, numbers = request["case"], request["numbers"]
        case = PROBES if name == "probes" else CASES[name]
        base = folder / "good" / case.build.__name__.strip("<>")
        if not base.exists():
            made = folder / "making"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            case.build(made)
            base.parent.mkdir(exist_ok=True)
            made.rename(base)
        commands = sorted(case.commands)
        command = commands[request["command"] % len(commands)]
        if numbers and (name, command) not in good:
            # Also compiles and reads what the time and the memory of an example are not for.
            good[name, command] = _run(case, command, base, folder, []).get("answer")
        if numbers:
            _limit_memory()
        os.ftruncate(errors, 0)
        outcome = _run(case, command, base, folder, numbers, answers)
        if outcome["is"] == "success" and numbers and case.same and outcome["answer"] != good[name, command]:
            outcome |= {"is": "wrong answer", "text": f"{outcome['answer']!r:.300} for {good[name, command]!r:.300}"}
        print(json.dumps(outcome), file=answers)


def _run(
    case: Any, command: str, base: Path, folder: Path, numbers: list[list[int]], answers: Any = None
) -> dict[str, Any]:
    from .mutations import Dice

    work = folder / "work"
    os.chdir(folder)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work, symlinks=True)
    what = []
    for each in numbers:
        try:
            what.append(case.change(work, Dice(each)))
        # Changes are made for good files, and one may meet what another has left.
        except Exception as error:
            what.append(f"nothing ({type(error).__name__}: {error})")
    if answers is not None:
        print(json.dumps({"command": command, "what": what}), file=answers)
    os.chdir(work)
    return _through_command_line(case.commands[command])


def _through_command_line(run: Any) -> dict[str, Any]:
    """``run`` in the place of the command line's own work."""
    from optimag_dist import cli

    answer: list[Any] = []
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            cli.app = lambda: answer.append(run())
            cli.main()
    except SystemExit as error:
        text = errors.getvalue().strip()
        if "Traceback (most recent call last)" in text or "a defect of optimag_dist" in text:
            return {"is": "traceback", "text": text}
        if not error.code or not text:
            return {"is": "silence", "text": f"ended with {error.code!r} and no sentence"}
        if "memory of this machine" in text:
            return {"is": "memory", "text": text}
        if len(text) > _MESSAGE_CHARACTERS or "Stack trace" in text:
            return {"is": "no sentence", "text": text[:2000]}
        return {"is": "refused", "text": text}
    except BaseException:
        return {"is": "traceback", "text": traceback.format_exc()}
    return {"is": "success", "answer": answer[0], "text": ""}


def _limit_memory() -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
