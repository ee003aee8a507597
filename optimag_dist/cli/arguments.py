"""Kinds of arguments that several commands take, and how a group finds the command that is meant."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup


class DefaultCommand(TyperGroup):
    """A group whose first command is meant where none is named: ``ppr STORE`` is ``ppr compute STORE``."""

    def spelt_out(self, args: list[str]) -> list[str]:
        """``args`` with the command they mean in front."""
        return args if args and args[0] in {*self.commands, "--help"} else [next(iter(self.commands)), *args]

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, self.spelt_out(args) if args else args)


def path(given: str | Path) -> Path:
    """A path on this machine, as an argument of a command."""
    if not str(given) or "://" in str(given):
        raise typer.BadParameter(f"{str(given)!r}: needed a path on this machine")
    return Path(given).expanduser()


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the configuration.")]
Store = Annotated[str, typer.Argument(help="Directory or URI of a graph store.")]
Address = Annotated[str | None, typer.Option(help="Address of a running Ray cluster; default: an embedded one.")]
