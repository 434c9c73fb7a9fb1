"""What preparing the data came to: counted once, stored with the shards, shown again when they are reused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bumblecore_core.errors import CODES

SHOWN_PLACES = 3
MANY_TRUNCATED = 0.05
"""Share of the examples above which cutting them is a warning."""


@dataclass(frozen=True, kw_only=True)
class DroppedRows:
    """Rows left out for one reason, with the places of the first few."""

    code: str
    reason: str
    count: int
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line: code, reason, where the first of them are."""
        more = ", …" if self.count > len(self.places) else ""
        where = f" ({', '.join(self.places)}{more})" if self.places else ""
        return f"{self.code} {self.reason}{where}"


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """`rows`: read; `examples`: in the store; `tokens`, `supervised`: sums of their lengths and counts (whole, unless
    tokens have weights); `truncated`: examples of which something was cut, `cut_ends` of them at the very limit, so
    that they lack the end of their last turn; `dropped`: rows that the stage leaves out, `skipped`: bad rows that
    `data.on_bad_row` leaves out; `warnings`: count by code or text, `BC009` being blank lines; `formats`: of each file;
    `seconds`: that building took; `reused`: built by an earlier run."""

    rows: int
    examples: int
    tokens: int
    supervised: int | float
    truncated: int = 0
    cut_ends: int = 0
    dropped: tuple[DroppedRows, ...] = ()
    skipped: tuple[DroppedRows, ...] = ()
    warnings: Mapping[str, int] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    seconds: float = 0.0
    reused: bool = False

    def dropped_lines(self) -> list[tuple[str, int]]:
        """(reason with code and first places, rows) of what was left out."""
        return [(str(dropped), dropped.count) for dropped in self.dropped]

    def skipped_lines(self) -> list[tuple[str, int]]:
        """The same for bad rows that were skipped."""
        return [(str(skipped), skipped.count) for skipped in self.skipped]

    def warning_lines(self) -> list[str]:
        """A line for each warning, with how often it was given."""
        lines = [f"{key} {CODES[key]}: {n:,}" if key in CODES else f"{key}: {n:,}" for key, n in self.warnings.items()]
        if self.truncated > MANY_TRUNCATED * self.examples:
            share = f"{self.truncated:,} of {self.examples:,} examples ({self.truncated / self.examples:.0%})"
            ends = f"{self.cut_ends:,} of them lose the end of their last turn"
            lines.append(f"BC066 {share} are cut at data.max_length, {ends}; data.too_long: drop leaves such rows out")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain data, less `reused`."""
        plain = asdict(self)
        del plain["reused"]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, reused: bool) -> PrepareReport:
        """The report that `to_json` wrote."""
        left_out = {
            name: tuple(DroppedRows(**{**each, "places": tuple(each["places"])}) for each in data[name])
            for name in ("dropped", "skipped")
        }
        return cls(**{**data, **left_out, "formats": tuple(data["formats"]), "reused": reused})


class RowCounts:
    """Rows counted by code and reason, with the places of the first few."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._places: dict[tuple[str, str], list[str]] = {}

    def add(self, code: str, reason: str, place: str) -> None:
        """Counts a row."""
        self._counts[code, reason] += 1
        places = self._places.setdefault((code, reason), [])
        if len(places) < SHOWN_PLACES:
            places.append(place)

    def rows(self) -> tuple[DroppedRows, ...]:
        """What was counted, the most frequent first."""
        return tuple(
            DroppedRows(code=code, reason=reason, count=count, places=tuple(self._places[code, reason]))
            for (code, reason), count in self._counts.most_common()
        )


class Tally:
    """Counts while the rows go by."""

    def __init__(self) -> None:
        self.rows = self.truncated = self.cut_ends = 0
        self.warnings: Counter[str] = Counter()
        self.labels: Counter[bool] = Counter()
        self.dropped = RowCounts()

    def report(
        self,
        *,
        examples: int,
        tokens: int,
        supervised: int | float,
        formats: Sequence[str],
        skipped: RowCounts,
        seconds: float,
    ) -> PrepareReport:
        """The finished report."""
        one_label = {"BC096": self.labels.total()} if len(self.labels) == 1 else {}
        return PrepareReport(
            rows=self.rows,
            examples=examples,
            tokens=tokens,
            supervised=supervised,
            truncated=self.truncated,
            cut_ends=self.cut_ends,
            dropped=self.dropped.rows(),
            skipped=skipped.rows(),
            warnings=dict(sorted((self.warnings | one_label).items())),
            formats=tuple(formats),
            seconds=seconds,
        )
