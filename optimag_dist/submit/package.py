"""The archive that takes a job's own files to the cluster."""

import fnmatch
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

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
        InputError: they come to more than ``max_bytes``, the largest are named; or one of them cannot be copied.
    """
    sources: list[tuple[Path, Path]] = []
    if job.files is not None:
        sources += _files(job.files, job.recipe.excludes)
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
        made.writestr(zipfile.ZipInfo(STEPS_FILE, _SAME_DAY), write_steps(job))
        for file, name in sources:
            made.writestr(_entry(file, name), file.read_bytes(), zipfile.ZIP_DEFLATED)


def _files(root: Path, excludes: Sequence[str], *, links_anywhere: bool = False) -> Iterator[tuple[Path, Path]]:
    """The files under ``root`` with their names in it, in order, of which no part of the name is excluded.

    Raises:
        InputError: there is what cannot be copied, or a link that leads out of ``root`` or to what is excluded.
    """
    root = root.resolve()
    patterns = [*_NEVER, *excludes]

    def excluded(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    def refuse(name: Path, what: str) -> NoReturn:
        raise InputError(
            f"{root / name}: {what}, which cannot be copied to the cluster; put a file or a folder there, or name it "
            f"in the recipe's excludes: [{name.name}]"
        )

    def check_link(place: Path, name: Path) -> None:
        target = Path(os.path.realpath(place))
        if links_anywhere:
            return
        if target in place.parents:
            refuse(name, "a link to a folder that it lies in")
        if root not in target.parents:
            refuse(name, f"a link out of the job's own files, to {target}")
        if any(excluded(part) for part in target.relative_to(root).parts):
            refuse(name, f"a link to {target.relative_to(root)}, which is left out")

    def walk(folder: Path, prefix: Path) -> Iterator[tuple[Path, Path]]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            refuse(prefix, f"a folder that cannot be read ({error.strerror})")
        for entry in entries:
            place, name = Path(entry.path), prefix / entry.name
            if excluded(entry.name):
                continue
            if entry.is_symlink():
                check_link(place, name)
            try:
                entry.name.encode()
                mode = place.stat().st_mode
            except UnicodeEncodeError:
                refuse(name, "a name that is not UTF-8")
            except OSError as error:
                refuse(name, f"a link to nothing ({error.strerror})" if entry.is_symlink() else str(error.strerror))
            if stat.S_ISDIR(mode):
                yield from walk(place, name)
            elif not stat.S_ISREG(mode):
                refuse(name, "a socket, a pipe or a device")
            else:
                yield place, name

    return walk(root, Path())


def _entry(file: Path, name: Path) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(str(name), _SAME_DAY)
    entry.external_attr = (file.stat().st_mode & 0xFFFF) << 16
    return entry
