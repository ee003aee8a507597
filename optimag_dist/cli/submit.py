"""``optimag submit``: jobs of several commands, here or on a Ray cluster."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from optimag_dist.cli.arguments import DefaultCommand, path
from optimag_dist.console import fail, nobody_listens, say

if TYPE_CHECKING:
    from optimag_dist.submit.cluster import Jobs

# click's own error, whichever click this typer comes with.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    cls=DefaultCommand,
    help="Jobs of several commands: optimag submit JOB.yaml [KEY=VALUE]... runs one, here or on a Ray cluster.",
    no_args_is_help=True,
)


@app.command("run")
def submit_run(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(parser=path, metavar="JOB.yaml", help="Recipe of a job; jobs/ holds some.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to its parameters and its steps.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Dashboard of a Ray cluster, http://HOST:8265; or RAY_API_SERVER_ADDRESS.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Run it here; so it is where no cluster is named.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show what the job prints until it ends.")] = False,
) -> None:
    """Run the steps of a recipe, here or as a job of a Ray cluster."""
    from optimag_dist.submit import load_job, run_steps

    job = load_job(recipe, changes or [])
    for step in job.steps:
        check_command(context.find_root().command, step)
    if local or not (address or os.environ.get("RAY_API_SERVER_ADDRESS")):
        raise typer.Exit(run_steps(job.steps, job.directory, job.files))
    from optimag_dist.submit.cluster import Jobs

    jobs = Jobs(address, say=say)
    submitted = jobs.submit(job)
    say(f"submitted: {submitted}")
    if follow:
        _follow(jobs, submitted)
    else:
        say(f"watch: {_ray_job('logs --follow', jobs, submitted)}")


def check_command(optimag: Any, words: Sequence[str]) -> None:
    """Raise ``InputError``, with what the command itself would say, unless ``optimag``, the program's command, has one
    that takes ``words``."""
    from optimag_dist.types import InputError

    command, args = optimag, list(words)
    name = "optimag"
    while isinstance(command, TyperGroup):
        args = command.spelt_out(args) if isinstance(command, DefaultCommand) else args
        if not args or args[0] not in command.commands or args[0] == "submit":
            raise InputError(f"step {shlex.join(words)!r}: needed one of {', '.join(command.commands)} after {name!r}")
        name = f"{name} {args[0]}"
        command = command.commands[args.pop(0)]
    try:
        command.make_context(name, args)
    except _USAGE_ERROR as error:
        raise InputError(f"step {shlex.join(words)!r}: {error}; see {name} --help") from error


def _follow(jobs: "Jobs", job: str) -> NoReturn:
    from optimag_dist.submit.cluster import remedy

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        if nobody_listens():
            raise typer.Exit(0)

    try:
        status = jobs.follow(job, write)
    except KeyboardInterrupt:
        fail(
            f"left; the job goes on. Come back: {_ray_job('logs --follow', jobs, job)}; end it: "
            f"{_ray_job('stop', jobs, job)}",
            130,
        )
    info = jobs.info(job)
    say(f"{job}: {info.status.value}")
    if advice := remedy(info):
        fail(advice, status)
    raise typer.Exit(status)


def _ray_job(command: str, jobs: "Jobs", job: str) -> str:
    return f"RAY_AUTH_MODE=token ray job {command} {job} --address {jobs.address}"
