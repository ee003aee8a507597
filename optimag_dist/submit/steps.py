"""Runs a job's commands one after the other, on the machine it is called on."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from optimag_dist.console import say
from optimag_dist.submit.recipe import HERE
from optimag_dist.types import InputError

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_steps(steps: Sequence[Sequence[str]], directory: Path, here: Path | None) -> int:
    """Run ``optimag`` with the words of each step in ``directory``, until one fails, and return its status: 128 +
    signal for one that was killed; 0 when all went well. ``here`` is the folder of the job's own files, ``{here}`` in a
    step."""
    if not directory.is_dir():
        raise InputError(
            f"directory {directory} is not on this machine ({os.uname().nodename}); give the job one that all nodes of "
            f"the cluster see, a network drive or shared volume: directory=/path"
        )
    for number, step in enumerate(steps, start=1):
        words = [word.replace(HERE, str(here)) for word in step]
        shown = shlex.join(["optimag", *words])
        say(f"step {number} of {len(steps)}: {shown}")
        status = _run(words, directory)
        if status:
            say(
                f"step {number} of {len(steps)} ended with status {status}; the job goes on from there when it is "
                f"given again: {shown}",
                stderr=True,
            )
            return status
    return 0


def _run(words: Sequence[str], directory: Path) -> int:
    # A session of its own: Ctrl-C in a terminal would reach it once from there and once from here.
    step = subprocess.Popen([sys.executable, "-m", "optimag_dist.cli", *words], cwd=directory, start_new_session=True)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if step.poll() is None:
            step.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        status = step.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status
