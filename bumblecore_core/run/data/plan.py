"""The batch plan: a pure function of (lengths, weights, seed, epoch, world size, options).

An epoch is a list of *units* (a row, or with packing a bin of rows) in a random order; an optimizer step takes the next
`world_size × micro_batch_size × gradient_accumulation_steps` of them. How a step's units are dealt to ranks and
micro-batches changes no number, since the core divides by the count of the whole step. Resuming is arithmetic: a step's
place is `(epoch, window)`, and nothing has to be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bumblecore_core.errors import DataError, one
from bumblecore_core.run.data.packing import GROUP, pack_bins
from bumblecore_core.toolkit.seeds import derive_seed
from bumblecore_core.toolkit.token_weights import as_count

COUNTED_EPOCHS, COUNTED_ROWS = 10, 5_000_000  # whichever is more epochs


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Rows of one forward pass. `counts` is false for a filler: a rank without rows of its own in a short last window
    repeats some at zero weight, so that every rank runs the same collectives. `count`: what the rows' loss counts."""

    rows: tuple[int, ...]
    count: int | float
    counts: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One optimizer step. `micro_batches[rank]` is that rank's list, equally long on all ranks; `index` of `total` is
    its place in the epoch."""

    epoch: int
    index: int
    total: int
    micro_batches: tuple[tuple[MicroBatch, ...], ...]

    @property
    def count(self) -> int | float:
        """What the window's loss counts, over all ranks and micro-batches."""
        return sum(self.rank_count(rank) for rank in range(len(self.micro_batches)))

    def rank_count(self, rank: int) -> int | float:
        """The same for one rank."""
        return sum(micro.count for micro in self.micro_batches[rank] if micro.counts)

    @property
    def epoch_after(self) -> float:
        """Epochs done when this window is done, as a fraction (2.37)."""
        return self.epoch + (self.index + 1) / self.total


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """`max_length` matters only with `packing`: tokens of a bin."""

    micro_batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    seed: int
    packing: bool
    max_length: int
    shuffle: bool = True


class BatchPlan:
    """The plan over a set of rows.

    `lengths`, `counts`: (n,) of the token store; `rows`: indices of the rows to use; `sources`: (n,) data file of each
    row; `weights`: per data file, how often its rows appear in an epoch. Either `epochs` or `max_steps` ends it.
    Packed epochs can differ in length by a few windows. At least 10 of them are counted exactly; those after
    `COUNTED_ROWS` are assumed to be as long as the first, so that no number of epochs makes planning slow.
    Raises `DataError` BC008 where the weights leave an epoch without a row.
    """

    def __init__(
        self,
        *,
        lengths: np.ndarray,
        counts: np.ndarray,
        rows: np.ndarray,
        options: PlanOptions,
        sources: np.ndarray | None = None,
        weights: Sequence[float] = (1.0,),
        epochs: float | None = None,
        max_steps: int | None = None,
    ) -> None:
        self.lengths, self.counts, self.rows, self.options = lengths, counts, rows, options
        self.sources = np.zeros(len(lengths), dtype=np.int32) if sources is None else sources
        self.weights = tuple(weights)
        self._sizes = self._rows_by_source()
        self._rows_in_epoch = sum(whole * len(own) + rest for own, whole, rest in self._sizes)
        if not self._rows_in_epoch:
            problem = f"the weights of the data files leave none of {len(rows):,} examples in an epoch"
            raise one(DataError, "BC008", problem, "Raise the weights", field="data.path")
        # Two epochs at most are alive at once (the one running, and the next for prefetching workers).
        self._units = lru_cache(maxsize=2)(self._make_units)
        self._counted = lru_cache(maxsize=None)(self._count_windows)
        # One group of the same rows gives as many bins in any order: best fit looks at their sorted lengths alone.
        same_rows = not any(rest for _, _, rest in self._sizes)
        self._equal_epochs = not options.packing or (same_rows and self._rows_in_epoch <= GROUP)
        self.total_steps = max_steps if max_steps is not None else self._steps_of(epochs or 1.0)

    def window(self, step: int) -> Window:
        """The window of optimizer step `step`, counted from 0."""
        epoch, index = self.place(step)
        return self._window(epoch, index)

    def windows(self, start: int = 0) -> Iterator[Window]:
        """The windows from step `start` to the end."""
        epoch, index = self.place(start)
        for _ in range(start, self.total_steps):
            yield self._window(epoch, index)
            index += 1
            if index == self._windows_in(epoch):
                epoch, index = epoch + 1, 0

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, window in it) of a step."""
        if self._equal_epochs:
            return divmod(step, self._windows_in(0))
        epoch = 0
        while step >= self._windows_in(epoch):
            step -= self._windows_in(epoch)
            epoch += 1
        return epoch, step

    @property
    def epochs(self) -> float:
        """Passes over the data in `total_steps`, each taken as long as the first."""
        return self.total_steps / self._windows_in(0)

    def drawn_rows(self) -> np.ndarray:
        """The rows that epochs draw from: all but those of files whose weight rounds to no row."""
        return np.concatenate([own for own, whole, rest in self._sizes if whole or rest])

    def tokens(self, epoch: int = 0) -> int:
        """Tokens of an epoch."""
        return int(self.lengths[self._units(epoch)[0]].sum(dtype=np.int64))

    def fill(self, epoch: int = 0) -> float:
        """Share of the packed bins' capacity that holds tokens (1.0 without packing: there is no padding)."""
        bins = len(self._units(epoch)[1]) - 1
        return self.tokens(epoch) / (bins * self.options.max_length) if self.options.packing else 1.0

    def _steps_of(self, epochs: float) -> int:
        whole = math.floor(epochs)
        counted = 0 if self._equal_epochs else min(whole, max(COUNTED_EPOCHS, COUNTED_ROWS // self._rows_in_epoch))
        steps = sum(map(self._windows_in, range(counted))) + (whole - counted) * self._windows_in(0)
        if epochs > whole:
            last = self._windows_in(whole if counted == whole else 0)
            # ceil, less a hair: 0.1 + 0.2 epochs of 10 windows are 3 windows, not 4
            steps += math.ceil((epochs - whole) * last - 1e-9)
        return max(1, steps)

    def _windows_in(self, epoch: int) -> int:
        return self._counted(0 if self._equal_epochs else epoch)

    def _count_windows(self, epoch: int) -> int:
        units = len(self._units(epoch)[1]) - 1 if self.options.packing else self._rows_in_epoch
        return math.ceil(units / self._units_in_window)

    @property
    def _units_in_window(self) -> int:
        o = self.options
        return o.world_size * o.micro_batch_size * o.gradient_accumulation_steps

    def _make_units(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, offsets): unit u holds `rows[offsets[u]:offsets[u + 1]]`."""
        rng = np.random.default_rng(derive_seed(self.options.seed, "plan", epoch))
        order = self._epoch_rows(rng)
        if self.options.shuffle:
            order = rng.permutation(order)
        if not self.options.packing:
            return order, np.arange(len(order) + 1, dtype=np.int64)
        rows, offsets = pack_bins(order, self.lengths, self.options.max_length)
        if not self.options.shuffle:
            return rows, offsets
        shuffled = rng.permutation(len(offsets) - 1)
        sizes = np.diff(offsets)[shuffled]
        pieces = [rows[offsets[b] : offsets[b + 1]] for b in shuffled]
        return np.concatenate(pieces), np.concatenate([[0], np.cumsum(sizes)])

    def _epoch_rows(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of one epoch, each file's repeated by its weight; a fractional rest is drawn anew each epoch."""
        if all(weight == 1.0 for weight in self.weights):
            return self.rows
        parts = []
        for own, whole, rest in self._sizes:
            parts.extend([own] * whole)
            parts.append(np.sort(rng.permutation(own)[:rest]))
        return np.concatenate(parts)

    def _rows_by_source(self) -> list[tuple[np.ndarray, int, int]]:
        """For each data file its rows, how often all of them appear in an epoch, and how many appear once more."""
        if all(weight == 1.0 for weight in self.weights):
            return [(self.rows, 1, 0)]
        found = []
        for source, weight in enumerate(self.weights):
            own = self.rows[self.sources[self.rows] == source]
            whole = math.floor(weight)
            found.append((own, whole, round((weight - whole) * len(own))))
        return found

    def _window(self, epoch: int, index: int) -> Window:
        rows, offsets = self._units(epoch)
        first = index * self._units_in_window
        last = min(first + self._units_in_window, len(offsets) - 1)
        units = [rows[offsets[u] : offsets[u + 1]] for u in range(first, last)]
        return Window(epoch=epoch, index=index, total=self._windows_in(epoch), micro_batches=self._deal(units))

    def _deal(self, units: Sequence[np.ndarray]) -> tuple[tuple[MicroBatch, ...], ...]:
        """Deals a window's units to micro-batches, longest first and back and forth, so that their tokens balance."""
        world = self.options.world_size
        per_rank = math.ceil(len(units) / (world * self.options.micro_batch_size))
        slots: list[list[np.ndarray]] = [[] for _ in range(world * per_rank)]
        sizes = np.asarray([self.lengths[unit].sum() for unit in units])
        for turn, unit in enumerate(np.argsort(-sizes, kind="stable").tolist()):
            lap, place = divmod(turn, len(slots))
            slots[place if lap % 2 == 0 else -1 - place].append(units[unit])
        filler = units[int(np.argmin(sizes))]
        micro_batches = [self._micro_batch(slot, filler) for slot in slots]
        return tuple(tuple(micro_batches[rank::world]) for rank in range(world))

    def _micro_batch(self, units: Sequence[np.ndarray], filler: np.ndarray) -> MicroBatch:
        rows = np.concatenate(units) if units else filler
        count = as_count(self.counts[rows].sum(dtype=np.float64))
        return MicroBatch(rows=tuple(rows.tolist()), count=count, counts=bool(units))
