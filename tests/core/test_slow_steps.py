"""The hint for slow steps: when it is printed, what it names, and that tiny or short runs print none."""

import pytest

from bumblecore_core.run.slow_steps import FAR_ABOVE, CpuUse, SlowSteps, read_cpu_use

PEAK = 1e12


def hints(steps, *, seconds, flops, waited=0.0, others=0.0, peak=PEAK):
    """What is printed in `steps` steps; `waited`, `others`: seconds of each step's second."""
    said, now = [], 0.0

    def read():
        told = None if waited is None else waited * now
        return CpuUse(waited=told, busy=(2.0 + others) * now, own=2.0 * now, cores=2, threads=4)

    watch = SlowSteps(peak_flops=peak, say=said.append, read=read, clock=lambda: now)
    for _ in range(steps):
        now += seconds
        watch.add(seconds=seconds, flops=flops)
    return said


def test_busy_cores_are_named_once():
    (hint,) = hints(500, seconds=1.0, flops=0.5 * PEAK, waited=0.5, others=1.5)
    assert "waited 50% of the last 30 s" in hint
    assert "other processes keep 1.5 of 2 cores busy" in hint


def test_more_threads_than_cores_are_named():
    (hint,) = hints(40, seconds=1.0, flops=0.5 * PEAK, waited=0.5)
    assert "4 threads on 2 cores" in hint
    assert "OMP_NUM_THREADS" in hint


@pytest.mark.parametrize("waited", [0.0, None])
def test_steps_far_above_the_estimate_are_told_without_busy_cores_too(waited):
    (hint,) = hints(40, seconds=1.0, flops=0.9 / FAR_ABOVE * PEAK, waited=waited)
    assert "11 times what its FLOPs take" in hint


@pytest.mark.parametrize(
    "run",
    [
        {"steps": 100_000, "seconds": 0.01, "flops": 1e7},  # tiny: the overhead of Python is all that is measured
        {"steps": 100, "seconds": 1.0, "flops": 0.15 * PEAK, "waited": 0.1, "others": 0.3},
        {"steps": 25, "seconds": 1.0, "flops": 0.01 * PEAK, "waited": 0.9, "others": 2.0},  # ends before the window
        {"steps": 100, "seconds": 1.0, "flops": 0.01 * PEAK, "peak": 0.0},
    ],
)
def test_sound_tiny_and_short_runs_print_nothing(run):
    assert hints(**run) == []


def test_the_system_tells_what_is_needed():
    use = read_cpu_use()
    assert use.busy > 0
    assert use.own > 0
    assert use.cores >= 1
