"""The archive that takes a job's own files to the cluster."""

import fnmatch
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import optimag_dist
from optimag_dist.submit.recipe import Job
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
        InputError: they come to more than ``max_bytes``, the largest are named; or one of them cannot be copied.
    """
    sources = [] if job.files is None else list(_files(job.files, job.recipe.excludes))
    if job.recipe.ship:
        package = Path(optimag_dist.__file__).parent
        # Some installers link to files elsewhere.
        sources += [(file, package.name / name) for file, name in _files(package, (), links_anywhere=True)]
    sizes = sorted(((file.stat().st_size, str(name)) for file, name in sources), reverse=True)
    if sum(size for size, _ in sizes) > max_bytes:
        largest = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for size, name in sizes[:3])
        raise InputError(
            f"the job's own files are more than the {max_bytes / 2**20:g} MiB that Ray takes; largest: {largest}. Name "
            f"them in the recipe's excludes, and put data where all nodes of the cluster see it"
        )
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        steps = json.dumps({"directory": str(job.directory), "steps": job.steps}, indent=1)
        made.writestr(zipfile.ZipInfo(STEPS_FILE, _SAME_DAY), steps)
        for file, name in sources:
            entry = zipfile.ZipInfo(str(name), _SAME_DAY)
            entry.external_attr = (file.stat().st_mode & 0xFFFF) << 16
            made.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def _files(root: Path, excludes: Sequence[str], *, links_anywhere: bool = False) -> Iterator[tuple[Path, Path]]:
    """The files under ``root`` with their names in it, in order, of which no part of the name is excluded."""
    root = root.resolve()

    def excluded(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in (*_NEVER, *excludes))

    def problem(place: Path) -> str | None:
        if place.is_symlink() and not links_anywhere:
            target = Path(os.path.realpath(place))
            if target in place.parents:
                return "a link to a folder that it lies in"
            if root not in target.parents:
                return f"a link out of the job's own files, to {target}"
            if any(excluded(part) for part in target.relative_to(root).parts):
                return f"a link to {target.relative_to(root)}, which is left out"
        try:
            place.name.encode()
            place.stat()
            if place.is_dir():
                os.listdir(place)
        except UnicodeEncodeError:
            return "a name that is not UTF-8"
        except OSError as error:
            what = "a link to nothing" if place.is_symlink() else "it cannot be read"
            return f"{what} ({error.strerror})"
        return None if place.is_dir() or place.is_file() else "a socket, a pipe or a device"

    def walk(folder: Path) -> Iterator[tuple[Path, Path]]:
        for place in sorted(folder.iterdir()):
            if excluded(place.name):
                continue
            if what := problem(place):
                raise InputError(
                    f"{place}: {what}, which cannot be copied to the cluster; put a file or a folder there, or name it "
                    f"in the recipe's excludes: [{place.name}]"
                )
            if place.is_dir():
                yield from walk(place)
            else:
                yield place, place.relative_to(root)

    return walk(root)
