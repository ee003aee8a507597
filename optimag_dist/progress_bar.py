"""A progress bar on standard error; nothing where that is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from optimag_dist.console import console


class Advance(Protocol):
    """Says that ``amount`` more is done, and what the bar is called from now on."""

    def __call__(self, amount: int, title: str | None = None) -> object: ...


@contextmanager
def progress_bar(
    title: str, total: int | None, *, of: Literal["rows", "bytes"] = "rows", done: int = 0, wanted: bool = True
) -> Iterator[Advance]:
    """Draw a bar of ``total`` rows or bytes (None where nobody knows), of which some were ``done`` before, until the
    block ends; the function given says how much more is done. Nothing is drawn unless ``wanted``."""
    err = console(stderr=True)
    counts: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()]
    if of == "rows":
        counts = [MofNCompleteColumn(), TimeElapsedColumn()]
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), *counts, TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, disable=not (wanted and err.is_terminal)) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda amount, title=None: bar.update(task, advance=amount, description=title)
