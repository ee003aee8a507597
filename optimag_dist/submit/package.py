"""The archive that takes a job's own files to the cluster."""

import fnmatch
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import optimag_dist
from optimag_dist.submit.recipe import Job
from optimag_dist.submit.steps import write_steps
from optimag_dist.types import InputError

STEPS_FILE = "optimag-job.json"
# What Ray's dashboard accepts in one request.
MAX_BYTES = 100 * 2**20
# Hidden files hold keys and histories, the others are found or made again on the cluster.
_NEVER = (".*", "__pycache__", "*.pyc", "stores", "runs")
# Ray names an archive by its content: the same files have to make the same bytes.
_SAME_DAY = (1980, 1, 1, 0, 0, 0)


def write_package(job: Job, archive: Path, max_bytes: int = MAX_BYTES) -> None:
    """Write ``job``'s steps and files into the zip file ``archive``.

    Raises:
        InputError: they come to more than ``max_bytes``; the largest are named.
    """
    sources: list[tuple[Path, Path]] = []
    if job.files is not None:
        sources += [(file, file.relative_to(job.files)) for file in _files(job.files, job.recipe.excludes)]
    if job.recipe.ship:
        package = Path(optimag_dist.__file__).parent
        sources += [(file, file.relative_to(package.parent)) for file in _files(package, ())]
    sizes = sorted(((file.stat().st_size, str(name)) for file, name in sources), reverse=True)
    if sum(size for size, _ in sizes) > max_bytes:
        largest = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for size, name in sizes[:3])
        raise InputError(
            f"the job's own files are more than the {max_bytes / 2**20:g} MiB that Ray takes; largest: {largest}. Name "
            f"them in the recipe's excludes, and put data where all nodes of the cluster see it"
        )
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(zipfile.ZipInfo(STEPS_FILE, _SAME_DAY), write_steps(job))
        for file, name in sources:
            made.writestr(_entry(file, name), file.read_bytes(), zipfile.ZIP_DEFLATED)


def _files(root: Path, excludes: Sequence[str]) -> Iterator[Path]:
    """The files under ``root``, in order, of which no part of the path is excluded."""
    patterns = [*_NEVER, *excludes]

    def excluded(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not excluded(name))
        yield from (Path(folder) / name for name in sorted(names) if not excluded(name))


def _entry(file: Path, name: Path) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(str(name), _SAME_DAY)
    entry.external_attr = (file.stat().st_mode & 0xFFFF) << 16
    return entry
