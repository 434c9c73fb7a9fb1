"""What becomes of bad rows: errors that end the preparation, or rows that are skipped, counted and listed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, NamedTuple

from bumblecore_core.errors import CODES, DataError, Problem, one
from bumblecore_core.run.data.report import SHOWN_PLACES, PrepareReport, RowCounts

MOST_PROBLEMS = 300  # different ones
READ_ON_ROWS = 20_000  # after the first error: enough to show the pattern, without tokenizing what is thrown away
SKIPPED_LOG = "skipped-rows.log"


class RowProblem(NamedTuple):
    """A problem of the row at `line` (see `text_lines.place`). `ends_file`: the rest of the file cannot be used, so
    skipping the row does not help. `mapping`: the fix if all rows of the file have the problem; may be empty."""

    line: int
    problem: Problem
    ends_file: bool = False
    mapping: str = ""


@dataclass
class _Group:
    """Equal problems of a file. `places`: of the first rows."""

    source: int
    problem: Problem
    mapping: str
    places: list[str] = field(default_factory=list)
    count: int = 0

    def merged(self, rows: int) -> Problem:
        """The group as one problem. `rows`: that were read of the file."""
        if self.count == 1:
            return self.problem
        all_rows = self.count == rows
        which = f"all {rows:,} rows" if all_rows else f"{self.count:,} of {rows:,} rows"
        more = ", …" if self.count > len(self.places) else ""
        text = f"{self.problem.problem.rstrip('.')} ({which} read: {', '.join(self.places)}{more})"
        fix = self.mapping if all_rows and self.mapping else self.problem.fix
        return replace(self.problem, problem=text, fix=fix)


class BadRows:
    """Collects the problems of rows. `skip`: such rows are left out, counted in `skipped` and listed in the file `log`,
    which exists only if there are any."""

    def __init__(self, *, skip: bool, log: Path) -> None:
        self.skipped = RowCounts()
        self._skip, self._log_path = skip, log
        self._log: IO[str] | None = None
        self._errors: dict[tuple[int, Problem], _Group] = {}
        self._left_out: dict[tuple[int, Problem], _Group] = {}
        self._rows: Counter[int] = Counter()
        self._rows_before_error: int | None = None

    def add(self, source: int, problems: Sequence[RowProblem], rows: int) -> None:
        """Adds what is wrong with a chunk of `rows` rows of the file `source`."""
        self._rows[source] += rows
        for bad in problems:
            if self._skip and not bad.ends_file:
                self._leave_out(source, bad)
            else:
                _add(self._errors, source, bad)
        if self._errors and self._rows_before_error is None:
            self._rows_before_error = self._rows.total()

    @property
    def failed(self) -> bool:
        """Whether there is an error, so that no more examples are needed."""
        return bool(self._errors)

    def enough(self) -> bool:
        """Whether the errors show what is wrong, so that reading may stop."""
        if self._rows_before_error is None:
            return False
        rows_since = self._rows.total() - self._rows_before_error
        return len(self._errors) >= MOST_PROBLEMS or rows_since >= READ_ON_ROWS

    def raise_errors(self) -> None:
        """Raises `DataError` with a problem for each group of equal ones, if there are any."""
        if self._errors:
            problems = self._merged(self._errors)
            raise DataError(problems[:MOST_PROBLEMS], len(problems))

    def refuse_share(self, report: PrepareReport, most: float) -> None:
        """Raises `DataError` BC097 if more than a share of `most` of the rows is skipped, with what is wrong."""
        try:
            refuse_bad_share(report, most)
        except DataError as error:
            raise DataError([*error.problems, *self._merged(self._left_out)]) from None

    def close(self) -> None:
        """Closes the log, synced to disk. Safe to call twice."""
        if self._log is not None:
            self._log.flush()
            os.fsync(self._log.fileno())
            self._log.close()
            self._log = None

    def _leave_out(self, source: int, bad: RowProblem) -> None:
        code = bad.problem.code
        self.skipped.add(code, CODES.get(code, bad.problem.problem), bad.problem.place)
        if self._log is None:
            self._log = self._log_path.open("w", encoding="utf-8")
        self._log.write(f"{bad.problem}\n")
        if len(self._left_out) < MOST_PROBLEMS or _key(source, bad) in self._left_out:
            _add(self._left_out, source, bad)

    def _merged(self, groups: dict[tuple[int, Problem], _Group]) -> list[Problem]:
        return [group.merged(self._rows[group.source]) for group in groups.values()]


def refuse_bad_share(report: PrepareReport, most: float) -> None:
    """Raises `DataError` BC097 if more than a share of `most` of the rows was skipped."""
    count = sum(skipped.count for skipped in report.skipped)
    if count > most * report.rows:
        reasons = "; ".join(f"{skipped.count:,} × {skipped}" for skipped in report.skipped)
        problem = f"{count:,} of {report.rows:,} rows ({count / report.rows:.1%}) are bad: {reasons}"
        fix = f"Correct them, check data.format, or raise data.max_bad_share ({most:g})"
        raise one(DataError, "BC097", problem, fix, field="data.max_bad_share")


def _key(source: int, bad: RowProblem) -> tuple[int, Problem]:
    return source, replace(bad.problem, place="")


def _add(groups: dict[tuple[int, Problem], _Group], source: int, bad: RowProblem) -> None:
    new = _Group(source=source, problem=bad.problem, mapping=bad.mapping)
    group = groups.setdefault(_key(source, bad), new)
    group.count += 1
    if len(group.places) < SHOWN_PLACES:
        group.places.append(bad.problem.place)
