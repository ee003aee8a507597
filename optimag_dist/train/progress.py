"""Progress of a run in the driver's terminal.

Bars drawn by the workers themselves would be mixed up with each other and with Ray's own lines. Where the output is no
terminal (a job's log, CI) every finished fit is one line instead.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from optimag_dist.console import console as plain_console
from optimag_dist.train.log import in_one_line


class ProgressView:
    """Shows what it is told until the ``with`` block ends, on standard output unless another ``console`` is given."""

    def __init__(self, num_fits: int, console: Console | None = None) -> None:
        console = console or plain_console()
        self._num_fits, self._ended = num_fits, 0
        self._told: set[str] = set()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._fits = self._bars.add_task("fits", total=num_fits, note="starting workers")
        self._epochs = self._bars.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> "ProgressView":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print ``text`` above the bars."""
        self._bars.console.print(f"  {text}", soft_wrap=True)

    def epoch(self, fit: str, record: Mapping[str, Any], epochs: int) -> None:
        """``fit`` has ended an epoch, of ``epochs`` at most."""
        # One has room, the first.
        validated = [f"  val {n.removeprefix('val/')} {v:.3f}" for n, v in record.items() if n.startswith("val/")]
        note = f"loss {record['loss']:.3f}" + "".join(validated[:1])
        self._bars.update(
            self._epochs, description=fit, completed=record["epoch"] + 1, total=epochs, note=note, visible=True
        )
        self._bars.update(self._fits, note="")

    def result(self, result: Mapping[str, Any]) -> None:
        """A fit has ended, or was found finished."""
        self._ended += 1
        self.say(
            f"{self._ended:>3}/{self._num_fits}  {result['variant']:<14} seed {result['seed']:<2}  "
            f"{in_one_line(result)}"
        )
        for advice in filter(None, result.get("advice", "").split("\n")):
            if advice not in self._told:
                self._told.add(advice)
                self.say(f"         {advice}")
        self._bars.update(self._fits, completed=self._ended, note="")
