"""Which files a run reads: the entries of `data.path` resolved to an ordered list."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from bumblecore_core.config.resolved import Selected
from bumblecore_core.config.schema import DataFile
from bumblecore_core.errors import DataError, Problem
from bumblecore_core.records import DataFormatRecord
from bumblecore_core.run.data.compressed import NAMES, compression_of, form_of, missing_decoder
from bumblecore_core.toolkit.regular_files import SAVE_FIRST, irregular

SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One concrete data file. `format`: None where it is to be told from the file's first row."""

    path: Path
    weight: float = 1.0
    format: Selected[DataFormatRecord] | None = None


def resolve_files(
    entries: Sequence[DataFile], formats: Sequence[Selected[DataFormatRecord] | None], *, field: str = "data.path"
) -> tuple[Source, ...]:
    """The files of `entries`, globs expanded in alphabetical order, relative to the working directory.

    `formats`: for each entry the format that it names, None for auto. Raises `DataError` with a problem for each entry
    that matches nothing (BC021), cannot be read (BC061), is of an unknown sort (BC004) or repeats a file (BC039).
    """
    sources: dict[str, Source] = {}
    problems: list[Problem] = []
    for index, (entry, chosen) in enumerate(zip(entries, formats, strict=True)):
        here = f"{field}[{index}]" if len(entries) > 1 else field
        paths = list(_matches(entry.path))
        if not paths:
            problems.append(_no_match(entry.path, here))
        for path in paths:
            key = os.path.realpath(path)
            if (problem := _unusable(path, here)) is not None:
                problems.append(problem)
            elif key in sources:
                problems.append(
                    Problem(
                        code="BC039",
                        place=str(path),
                        field=here,
                        problem="another entry has named this file already",
                        fix="Name it once; `weight: 2` makes its rows appear twice in an epoch.",
                    )
                )
            else:
                sources[key] = Source(path=path, weight=entry.weight, format=chosen)
    if problems:
        raise DataError(problems)
    return tuple(sources.values())


def _matches(path: str) -> Iterator[Path]:
    expanded = os.path.expanduser(path)
    if os.path.exists(expanded):  # first, so that a file whose name holds [ or * can be named
        yield Path(expanded)
    elif glob.has_magic(expanded):
        for match in sorted(glob.glob(expanded, recursive=True)):
            if os.path.isfile(match):
                yield Path(match)


def _unusable(path: Path, field: str) -> Problem | None:
    if path.is_dir():
        return Problem(
            code="BC021",
            place=str(path),
            field=field,
            problem="this is a directory",
            fix=f"Name its files with a glob such as {path / '*.jsonl'}.",
        )
    if (kind := irregular(path)) is not None:
        problem = f"expected a regular file, got {kind}"
        return Problem(code="BC061", place=str(path), field=field, problem=problem, fix=SAVE_FIRST)
    if not _is_data_file(path):
        suffixes = "".join(path.suffixes[-2:] if compression_of(path) else path.suffixes[-1:])
        what = f"the suffix {suffixes}" if suffixes else "a name without a suffix"
        more = f"; all but .parquet also compressed, with {', '.join(NAMES)} behind it"
        return Problem(
            code="BC004",
            place=str(path),
            field=field,
            problem=f"no reader is known for {what}",
            fix=f"Use one of {', '.join(SUFFIXES)}{more}.",
        )
    if (missing := missing_decoder(path)) is not None:
        return missing
    if not os.access(path, os.R_OK):
        return Problem(
            code="BC061", place=str(path), field=field, problem="the file cannot be read", fix="Check its permissions."
        )
    return None


def _is_data_file(path: Path) -> bool:
    form = form_of(path)
    return form in SUFFIXES and not (form == ".parquet" and compression_of(path))


def _no_match(path: str, field: str) -> Problem:
    if os.path.islink(os.path.expanduser(path)):
        fix = "Correct the link, or name the file itself"
        return Problem(code="BC021", place=path, field=field, problem="this link leads to no file", fix=fix)
    what = "the glob matches no file" if glob.has_magic(path) else "there is no such file"
    near = _nearest(os.path.expanduser(path))
    hint = f"did you mean '{near}'?" if near else f"Paths are relative to the working directory, {os.getcwd()}."
    return Problem(code="BC021", place=path, field=field, problem=what, fix=hint)


def _nearest(path: str) -> str | None:
    """The existing data file (or directory) that is spelt most like `path`, below the deepest directory that exists."""
    parent = Path(path).parent
    while not os.path.isdir(parent) and parent != parent.parent:  # unlike Path's, for a name of any length
        parent = parent.parent
    below = [str(found) for found in _listing(parent)]
    close = difflib.get_close_matches(str(Path(path)), below, n=1, cutoff=0.5)
    if close:
        return close[0]
    names = {Path(found).name: found for found in below}
    same_name = difflib.get_close_matches(Path(path).name, names, n=1, cutoff=0.5)
    return names[same_name[0]] if same_name else None


def _listing(directory: Path, most: int = 2000) -> list[Path]:
    """Data files below `directory`, and the directories themselves; hidden ones left out."""
    found: list[Path] = []
    for parent, children, names in os.walk(directory):  # skips what it cannot read, which only costs the hint
        children[:] = sorted(child for child in children if not child.startswith("."))
        data_files = (name for name in sorted(names) if _is_data_file(Path(name)))
        found.extend(Path(parent, name) for name in islice(chain(children, data_files), most - len(found)))
        if len(found) >= most:
            break
    return found
