"""What preparing the data came to: counted once, stored with the shards, shown again when they are reused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bumblecore_core.errors import CODES

SHOWN_PLACES = 3


@dataclass(frozen=True, kw_only=True)
class DroppedRows:
    """Rows left out for one reason, with the places of the first few."""

    code: str
    reason: str
    count: int
    places: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """`rows`: read; `examples`: in the store; `tokens`, `supervised`: sums of their lengths and counts (whole, unless
    tokens have weights); `truncated`: examples of which something was cut; `warnings`: count by code or text, `BC009`
    being blank lines; `formats`: of each file; `seconds`: that building took; `reused`: built by an earlier run."""

    rows: int
    examples: int
    tokens: int
    supervised: int | float
    truncated: int = 0
    dropped: tuple[DroppedRows, ...] = ()
    warnings: Mapping[str, int] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    seconds: float = 0.0
    reused: bool = False

    def dropped_lines(self) -> list[tuple[str, int]]:
        """(reason with code and first places, rows) of what was left out."""
        return [(describe_dropped(dropped), dropped.count) for dropped in self.dropped]

    def warning_lines(self) -> list[str]:
        """A line for each warning, with how often it was given."""
        return [f"{key} {CODES[key]}: {n:,}" if key in CODES else f"{key}: {n:,}" for key, n in self.warnings.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain data, less `reused`."""
        plain = asdict(self)
        del plain["reused"]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, reused: bool) -> PrepareReport:
        """The report that `to_json` wrote."""
        dropped = tuple(DroppedRows(**{**each, "places": tuple(each["places"])}) for each in data["dropped"])
        return cls(**{**data, "dropped": dropped, "formats": tuple(data["formats"]), "reused": reused})


class Tally:
    """Counts while the rows go by."""

    def __init__(self) -> None:
        self.rows = self.truncated = 0
        self.warnings: Counter[str] = Counter()
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._places: dict[tuple[str, str], list[str]] = {}

    def drop(self, code: str, reason: str, place: str) -> None:
        """Counts a row that is left out."""
        self._dropped[code, reason] += 1
        places = self._places.setdefault((code, reason), [])
        if len(places) < SHOWN_PLACES:
            places.append(place)

    def dropped(self) -> tuple[DroppedRows, ...]:
        """What was left out, the most frequent first."""
        return tuple(
            DroppedRows(code=code, reason=reason, count=count, places=tuple(self._places[code, reason]))
            for (code, reason), count in self._dropped.most_common()
        )

    def report(
        self, *, examples: int, tokens: int, supervised: int | float, formats: Sequence[str], seconds: float
    ) -> PrepareReport:
        """The finished report."""
        return PrepareReport(
            rows=self.rows,
            examples=examples,
            tokens=tokens,
            supervised=supervised,
            truncated=self.truncated,
            dropped=self.dropped(),
            warnings=dict(sorted(self.warnings.items())),
            formats=tuple(formats),
            seconds=seconds,
        )


def describe_dropped(dropped: DroppedRows) -> str:
    """One line: code, reason, where the first of them are."""
    more = ", …" if dropped.count > len(dropped.places) else ""
    where = f" ({', '.join(dropped.places)}{more})" if dropped.places else ""
    return f"{dropped.code} {dropped.reason}{where}"
