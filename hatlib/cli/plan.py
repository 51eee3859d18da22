"""What `hatlib upscale` will do: which files there are, and what each result is called."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hatlib.errors import HatlibError

Name = Callable[[Path], str]
"""Gives the file name of the result for an input."""


class Job(NamedTuple):
    """An input and where its result goes, or the reason why it can't go anywhere."""

    source: Path
    target: Path | HatlibError


def plan(
    inputs: list[str],
    output: Path | None,
    name: Name,
    folder_suffix: str,
    overwrite: bool = False,
    share: tuple[int, int] = (0, 1),
) -> tuple[list[Job], int]:
    """Finds the images and names their results.

    A file's result lies beside it, that of a folder in FOLDER + suffix under the same relative names; with `output`
    both lie there. Results of other inputs are no inputs, so that a run may be repeated over its own results.

    Args:
        inputs: files, folders and patterns such as 'scans/**/*.png'.
        output: file for a single file, else folder.
        name: names the results.
        folder_suffix: appended to the name of a folder to name that of its results.
        overwrite: do again what is done.
        share: this process's rank and the number of processes: each takes its part of the list, which is the same for
            all, because what others have finished meanwhile is taken off it only afterwards.

    Returns:
        What is to be done, and how many are done already.

    Raises:
        HatlibError: if there is nothing to do, or the only file can't be done.
    """
    if len(inputs) == 1 and Path(inputs[0]).is_file():
        task = _single(Path(inputs[0]), output, name)
        if _exists(task.target) and not overwrite:
            raise HatlibError(f"'{task.target}' exists; --overwrite replaces it.")
        return [task] if share[0] == 0 else [], 0
    if output is not None and output.exists() and not output.is_dir():
        raise HatlibError(f"Cannot write several images to '{output}': it is a file.")
    wanted = {source: folder for entry in inputs for source, folder in _expand(entry, output, folder_suffix)}
    if output is not None:
        _make_folder(output)
    targets = {source: folder / name(source) for source, folder in wanted.items()}
    results = {os.path.abspath(target) for target in targets.values()}
    owners: dict[Path, Path] = {}
    tasks = []
    for source, target in targets.items():
        if os.path.abspath(source) in results and os.path.abspath(target) != os.path.abspath(source):
            continue
        if (owner := owners.setdefault(target, source)) != source:
            error = HatlibError(
                f"'{owner}' and '{source}' would both become '{target}': rename one, or keep the formats apart by "
                "--format same."
            )
            tasks.append(Job(source, error))
        else:
            tasks.append(Job(source, target))
    return _unfinished(tasks[share[0] :: share[1]], overwrite)


def _unfinished(tasks: list[Job], overwrite: bool) -> tuple[list[Job], int]:
    """Leaves out what is done, and makes the folders for the rest."""
    from hatlib.imageio import check_output

    left, skipped = [], 0
    for source, target in tasks:
        try:
            if isinstance(target, HatlibError):
                raise target
            _make_folder(target.parent)
            check_output(target)
            _refuse_itself(source, target)
            if _exists(target) and not overwrite:
                skipped += 1
            else:
                left.append(Job(source, target))
        except HatlibError as error:
            left.append(Job(source, error))
    return left, skipped


def _single(source: Path, output: Path | None, name: Name) -> Job:
    from hatlib.imageio import check_output

    target = output or source.parent
    if target.is_dir():
        target = target / name(source)
    check_output(target)
    _refuse_itself(source, target)
    return Job(source, target)


def _expand(entry: str, output: Path | None, folder_suffix: str) -> Iterator[tuple[Path, Path]]:
    """The images that an argument names, sorted, each with the folder of its result."""
    from hatlib.imageio import IMAGE_SUFFIXES

    path = Path(entry)
    if path.is_file():
        yield path, output or path.parent
        return
    if path.is_dir():
        root = path
        target = output or path.resolve().with_name(path.resolve().name + folder_suffix)
        files = _walk(path, target.resolve())
    elif glob.has_magic(entry):
        fixed = [part for part in path.parts[: next(i for i, p in enumerate(path.parts) if glob.has_magic(p))]]
        root, target = Path(*fixed), output
        files = [found for found in map(Path, sorted(glob.glob(entry, recursive=True))) if found.is_file()]
    else:
        raise HatlibError(f"There is no file or folder '{entry}'.")
    files = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        what = "The folder" if path.is_dir() else "The pattern"
        raise HatlibError(f"{what} '{entry}' holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    for file in files:
        yield file, (target / file.relative_to(root).parent if target is not None else file.parent)


def _walk(root: Path, results: Path) -> list[Path]:
    """Files below a folder, but nothing hidden, and not the folder of the results if it lies inside."""
    files = []
    for folder, subfolders, names in os.walk(root):
        inside = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and (inside / name).resolve() != results)
        files += [inside / name for name in sorted(names) if name[0] != "." and (inside / name).is_file()]
    return files


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HatlibError(f"Cannot make the folder '{folder}': {error.strerror}.") from error


def _exists(target: Path) -> bool:
    return os.path.lexists(target) and target.exists()


def _refuse_itself(source: Path, target: Path) -> None:
    if _exists(target) and target.samefile(source):
        raise HatlibError(f"The output '{target}' is the input itself: choose another name, such as by --suffix.")
