"""A sweep in the terminal: a live table; where the output is no terminal, a line per trial that has ended."""

from rich.console import Console
from rich.live import Live
from rich.table import Table

from optimag_dist.console import console as plain_console
from optimag_dist.tune.options import VARIANT, SweepOptions
from optimag_dist.tune.results import ENDED, TrialRow, ranked


class SweepView:
    """Shows the rows it is given, of ``total`` trials, until the ``with`` block ends. Where a trial has several seeds,
    every fit that has ended is a line of its own."""

    def __init__(self, options: SweepOptions, total: int, seeds: int = 1, console: Console | None = None) -> None:
        self._options, self._total, self._seeds = options, total, seeds
        self._told_fits: set[tuple[str, int]] = set()
        self._console = console or plain_console()
        self._live = Live(console=self._console, transient=True, refresh_per_second=2)
        self._told: set[str] = set()
        self._cluster = ""

    def __enter__(self) -> "SweepView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self, rows: list[TrialRow], nodes: int, cpus: float) -> None:
        """Show ``rows`` and how large the cluster is now."""
        cluster = f"cluster: {nodes} {'node' if nodes == 1 else 'nodes'}, {cpus:g} CPUs"
        if self._console.is_terminal:
            # Above the prompt there is room for so many rows.
            room = max(3, self._console.height - 8)
            shown = [r for r in rows if r.status == "running"] + ranked(
                [r for r in rows if r.status in ENDED], self._options
            )
            table = trials_table(shown[:room], self._options)
            table.caption = f"{self._counts(rows)}  {cluster}"
            self._live.update(table)
            return
        if cluster != self._cluster:
            self._cluster = cluster
            self._say(f"  {cluster}")
        for row in rows:
            for seed, line in row.fits.items():
                if self._seeds > 1 and (row.trial, seed) not in self._told_fits:
                    self._told_fits.add((row.trial, seed))
                    number = f"{len(self._told_fits):>3}/{self._total * self._seeds}"
                    named = row.values.get(VARIANT) or row.trial
                    self._say(f"  {number}  {named}  seed {seed:<2}  {line}")
            if row.status in ENDED and row.trial not in self._told:
                self._told.add(row.trial)
                values = "  ".join(f"{key}={_short(value)}" for key, value in row.values.items())
                metrics = "  ".join(f"{name} {_short(value)}" for name, value in row.metrics.items())
                why = f"  {row.error}" if row.error else ""
                self._say(
                    f"  {len(self._told):>3}/{self._total}  {row.trial}  {row.status:<8}  epoch {row.epochs:<4} "
                    f"{metrics}  {values}{why}"
                )

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def _counts(self, rows: list[TrialRow]) -> str:
        counts = {s: sum(row.status == s for row in rows) for s in ("running", *ENDED)}
        pending = self._total - sum(counts.values())
        return ", ".join(f"{number} {status}" for status, number in {**counts, "pending": pending}.items() if number)


def trials_table(rows: list[TrialRow], options: SweepOptions, front: list[TrialRow] | None = None) -> Table:
    """``rows`` in the order given; a star marks those in ``front``."""
    table = Table("trial", "status", "epochs", *options.metrics, *options.space, *(["front"] if front else []))
    for row in rows:
        table.add_row(
            row.trial,
            row.status,
            str(row.epochs),
            *(_short(row.metrics.get(name)) for name in options.metrics),
            *(_short(row.values[key]) for key in options.space),
            *(["*" if row in front else ""] if front else []),
        )
    return table


def _short(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
