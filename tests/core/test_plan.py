"""The batch plan: nothing lost, nothing doubled, the same steps whatever the split over ranks and micro-batches."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.errors import DataError
from bumblecore_core.run.data import plan as plan_module
from bumblecore_core.run.data.packing import pack_bins
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions

LENGTHS = np.asarray([5, 9, 3, 12, 7, 7, 1, 4, 30, 2, 8], dtype=np.int32)


def make_plan(lengths=LENGTHS, *, micro=2, accumulation=1, world=1, seed=3, packing=False, max_length=32, **kwargs):
    options = PlanOptions(
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        world_size=world,
        seed=seed,
        packing=packing,
        max_length=max_length,
    )
    kwargs.setdefault("epochs", None if "max_steps" in kwargs else 1.0)
    lengths = np.asarray(lengths, dtype=np.int32)
    rows = np.arange(len(lengths))
    return BatchPlan(lengths=lengths, counts=lengths - 1, rows=rows, options=options, **kwargs)


def rows_of(window):
    return sorted(row for rank in window.micro_batches for micro in rank if micro.counts for row in micro.rows)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    world=st.integers(1, 3),
    packing=st.booleans(),
)
def test_an_epoch_holds_each_row_once_and_ranks_run_alike(lengths, micro, accumulation, world, packing):
    plan = make_plan(lengths, micro=micro, accumulation=accumulation, world=world, packing=packing, max_length=40)
    seen = Counter()
    for window in plan.windows():
        seen.update(rows_of(window))
        assert len({len(rank) for rank in window.micro_batches}) == 1
        assert all(micro_batch.rows for rank in window.micro_batches for micro_batch in rank)
        assert window.count == sum(plan.counts[row] for row in rows_of(window))
        if not packing:
            assert max(len(m.rows) for rank in window.micro_batches for m in rank) <= micro
    assert seen == Counter(range(len(lengths)))


@pytest.mark.parametrize("packing", [False, True])
def test_the_split_over_ranks_and_micro_batches_does_not_change_a_step(packing):
    splits = [(6, 1, 1), (3, 2, 1), (2, 3, 1), (1, 6, 1), (1, 3, 2), (3, 1, 2), (2, 1, 3)]
    plans = [make_plan(micro=m, accumulation=a, world=w, packing=packing) for m, a, w in splits]
    steps = [[rows_of(window) for window in plan.windows()] for plan in plans]
    assert all(other == steps[0] for other in steps)
    assert len({plan.total_steps for plan in plans}) == 1


def test_a_short_last_window_gives_a_filler_to_the_idle_rank():
    plan = make_plan([5, 6, 7], micro=1, world=2)
    last = list(plan.windows())[-1]
    fillers = [micro for rank in last.micro_batches for micro in rank if not micro.counts]
    assert len(fillers) == 1
    assert fillers[0].rows
    assert last.count == last.rank_count(0) + last.rank_count(1)
    assert last.rank_count(1) == 0 or last.rank_count(0) == 0


def test_any_step_is_found_without_replay():
    plan = make_plan(epochs=2.5)
    every = list(plan.windows())
    assert len(every) == plan.total_steps
    for step, window in enumerate(every):
        assert plan.window(step) == window
        assert list(make_plan(epochs=2.5).windows(step)) == every[step:]


def test_epochs_differ_and_seeds_differ():
    first, second = (rows for rows in ([rows_of(w) for w in make_plan(seed=s).windows()] for s in (1, 2)))
    assert first != second
    plan = make_plan(epochs=2.0)
    steps = [rows_of(window) for window in plan.windows()]
    assert steps[: len(steps) // 2] != steps[len(steps) // 2 :]


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 6), (2.0, 12), (0.5, 3), (0.1, 1), (2.5, 15), (0.01, 1)])
def test_epochs_become_steps(epochs, steps):
    assert make_plan(epochs=epochs).total_steps == steps


def test_max_steps_runs_over_epochs():
    plan = make_plan(max_steps=14)
    epochs = [window.epoch for window in plan.windows()]
    assert epochs == [0] * 6 + [1] * 6 + [2] * 2
    assert [w.epoch_after for w in plan.windows()][5] == 1.0


def test_weights_repeat_and_thin_files():
    lengths = np.full(30, 4, dtype=np.int32)
    sources = np.asarray([0] * 10 + [1] * 10 + [2] * 10, dtype=np.int32)
    plan = make_plan(lengths, sources=sources, weights=(1.0, 2.0, 0.5), epochs=2.0)
    seen = [Counter(), Counter()]
    for window in plan.windows():
        seen[window.epoch].update(rows_of(window))
    for epoch in seen:
        assert [epoch[row] for row in range(20)] == [1] * 10 + [2] * 10
        assert sum(epoch[row] for row in range(20, 30)) == 5
    assert {r for r in seen[0] if r >= 20} != {r for r in seen[1] if r >= 20}


def test_weights_that_leave_no_row_are_refused():
    with pytest.raises(DataError, match=r"BC008 data\.path: .* none of 11 examples"):
        make_plan(max_steps=2, weights=[1e-9])


def test_a_far_step_is_found_at_once():
    plan = make_plan(max_steps=10**9, weights=[1.5])
    assert plan.place(10**9 - 1) == divmod(10**9 - 1, 9)  # 11 rows and round(5.5) more, two in a step
    assert plan.window(10**9 - 1).total == 9


def count_packings(monkeypatch):
    packed = []

    def counted(order, lengths, capacity):
        packed.append(len(order))
        return pack_bins(order, lengths, capacity)

    monkeypatch.setattr(plan_module, "pack_bins", counted)
    return packed


@pytest.mark.parametrize(("epochs", "max_steps"), [(1e6, None), (1e6 - 0.5, None), (None, 10**9)])
def test_the_number_of_steps_does_not_make_a_packed_plan_slow(monkeypatch, epochs, max_steps):
    packed = count_packings(monkeypatch)
    plan = make_plan(packing=True, epochs=epochs, max_steps=max_steps)
    windows = plan.window(0).total
    assert plan.total_steps == (max_steps or round(epochs * windows))
    assert plan.epochs == pytest.approx(plan.total_steps / windows)
    assert plan.place(plan.total_steps - 1) == divmod(plan.total_steps - 1, windows)
    assert len(packed) == 1


def test_packed_epochs_that_differ_are_counted_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(plan_module, "COUNTED_EPOCHS", 3)
    monkeypatch.setattr(plan_module, "COUNTED_ROWS", 1)
    packed = count_packings(monkeypatch)
    options = {"packing": True, "weights": [1.5], "max_length": 30, "micro": 1}
    each = [make_plan(max_steps=10**9, **options)._windows_in(epoch) for epoch in range(4)]
    for epochs, steps in ((3, sum(each[:3])), (10**6, sum(each[:3]) + (10**6 - 3) * each[0])):
        packed.clear()
        assert make_plan(epochs=float(epochs), **options).total_steps == steps
        assert len(packed) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=100), st.integers(20, 100), st.randoms())
def test_the_number_of_bins_does_not_depend_on_the_order(lengths, capacity, random):
    order = list(range(len(lengths)))
    counts = set()
    for _ in range(3):
        counts.add(len(pack_bins(np.asarray(order), np.asarray(lengths), capacity)[1]))
        random.shuffle(order)
    assert len(counts) == 1


def test_rows_of_a_file_whose_weight_rounds_to_none_are_not_drawn():
    sources = np.asarray([0] * 6 + [1] * 5, dtype=np.int32)
    plan = make_plan(max_steps=10**9, sources=sources, weights=[1.0, 1e-3])
    assert plan.drawn_rows().tolist() == [0, 1, 2, 3, 4, 5]
    assert {row for step in range(3) for row in rows_of(plan.window(step))} == set(range(6))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=300), st.integers(20, 100))
def test_bins_hold_whole_documents_within_capacity(lengths, capacity):
    lengths = np.asarray(lengths)
    rows, offsets = pack_bins(np.arange(len(lengths)), lengths, capacity)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for start, end in itertools.pairwise(offsets):
        assert end - start == 1 or lengths[rows[start:end]].sum() <= capacity


def test_packing_fills_its_bins():
    lengths = np.random.default_rng(0).integers(20, 400, 5000).astype(np.int32)
    plan = make_plan(lengths, packing=True, max_length=1024)
    assert plan.fill() > 0.99


def test_a_bin_is_filled_to_its_last_token():
    rows, offsets = pack_bins(np.arange(4), np.asarray([9, 9, 1, 1]), 10)
    assert sorted(sorted(rows[start:end].tolist()) for start, end in itertools.pairwise(offsets)) == [[0, 2], [1, 3]]


def test_packed_rows_are_not_trained_from_full_to_empty():
    """Best-fit decreasing makes the bins of the longest documents first."""
    lengths = np.random.default_rng(0).integers(1, 400, 2000).astype(np.int32)
    plan = make_plan(lengths, packing=True, max_length=400, micro=1)
    longest = [lengths[rows_of(window)].max() for window in plan.windows()]
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.15


def test_ranks_balance_their_tokens_over_a_windows_micro_batches():
    lengths = np.sort(np.random.default_rng(1).integers(1, 1000, 36)).astype(np.int32)
    window = make_plan(lengths, micro=3, world=4, accumulation=3).window(0)
    tokens = [sum(lengths[list(micro.rows)].sum() for micro in rank) for rank in window.micro_batches]
    assert max(tokens) / min(tokens) < 1.1


def test_a_windows_micro_batches_balance_their_tokens():
    lengths = np.random.default_rng(1).integers(1, 1000, 64).astype(np.int32)
    window = make_plan(lengths, micro=8, world=8, accumulation=1).window(0)
    tokens = [lengths[list(rank[0].rows)].sum() for rank in window.micro_batches]
    assert max(tokens) / min(tokens) < 1.25
