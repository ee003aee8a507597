"""A progress bar on standard error; nothing where that is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich import progress

from optimag_dist.console import console


@contextmanager
def progress_bar(
    title: str, total: int | None, *, of: Literal["rows", "bytes"] = "rows", done: int = 0, wanted: bool = True
) -> Iterator[Callable[..., object]]:
    """Draw a bar of ``total`` rows or bytes (None where nobody knows), of which some were ``done`` before, until the
    block ends; nothing unless ``wanted``. The function given says that some more is done, and the title from now on."""
    err = console(stderr=True)
    counts: list[progress.ProgressColumn] = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    if of == "rows":
        counts = [progress.MofNCompleteColumn(), progress.TimeElapsedColumn()]
    what = progress.TextColumn("{task.description}", markup=False)
    columns = what, progress.BarColumn(bar_width=24), *counts, progress.TimeRemainingColumn()
    with progress.Progress(*columns, console=err, transient=True, disable=not (wanted and err.is_terminal)) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda amount, title=None: bar.update(task, advance=amount, description=title)
