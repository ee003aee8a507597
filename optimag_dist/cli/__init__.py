"""The ``optimag`` command: thin commands over the packages.

Every command imports what it needs itself: torch and Ray take seconds that ``optimag --help`` need not wait for.
"""

import os
import sys
from pathlib import Path

import typer

from optimag_dist.cli import data, ppr, results, store, submit, train
from optimag_dist.console import console, end, fail, unfailing_output


def doctor() -> None:
    """Check this machine: versions, devices, memory, backends, and what to do about anything wrong."""
    from optimag_dist.doctor import as_table, diagnose, healthy

    findings = diagnose()
    console().print(as_table(findings))
    if not healthy(findings):
        raise typer.Exit(1)


app = typer.Typer(
    help="OptiMAG for large multimodal attributed graphs: ingest, PPR, distributed training, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    doctor,
    store.ingest,
    store.partition,
    store.split,
    store.encode,
    train.train,
    train.tune,
    results.embed,
    results.predict,
    results.evaluate,
    results.report,
    train.experiment,
    train.demo,
):
    app.command()(command)
for name, group in {"data": data.app, "ppr": ppr.app, "submit": submit.app}.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Entry point: what a user or a machine can cause is told in one message, without a traceback."""
    with unfailing_output():
        try:
            for argument in sys.argv[1:]:
                argument.encode()
            _check_folders()
            app()
        except Exception as error:
            if "ray.exceptions" not in sys.modules:
                end(error)
            from optimag_dist.ray_session import explained

            end(explained(error) or error)


def _check_folders() -> None:
    """Before torch is imported, which ends the process where there is no working directory."""
    try:
        Path.cwd()
    except FileNotFoundError:
        fail("the working directory has been removed; go to another one", 2)
    try:
        Path.home()
    except RuntimeError:
        # A user who is only a number, as in containers, may have none, and the libraries take one for granted.
        from optimag_dist.private_folder import private_folder

        os.environ["HOME"] = str(private_folder(below=0))
