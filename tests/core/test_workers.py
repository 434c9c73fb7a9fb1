"""Worker processes: they end with their parent, leave signals to it, and are named where they die."""

import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_stages import ByteStage, prepare

from bumblecore_core.errors import BumbleError, PluginError, RunError, one
from bumblecore_core.run.data.encode import _died as died
from bumblecore_core.run.data.loader import rank_windows, worker_deaths
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.run.data.workers import follow_parent, signals_held
from bumblecore_core.run.interrupts import EarlyInterrupts, Interrupted
from bumblecore_core.values import Batch
from leftovers import all_end

FORK = multiprocessing.get_context("fork")


def waits(ready) -> None:
    follow_parent()
    ready.set()
    time.sleep(60)


def starts_a_worker(ready, pid) -> None:
    child = FORK.Process(target=waits, args=(ready,), daemon=True)
    child.start()
    pid.value = child.pid
    time.sleep(60)


def stranger_sends(number: int, pid: int) -> None:
    subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)


def test_a_worker_ends_with_a_parent_that_is_killed():
    ready, pid = FORK.Event(), FORK.Value("i", 0)
    parent = FORK.Process(target=starts_a_worker, args=(ready, pid))
    parent.start()
    assert ready.wait(30)
    parent.kill()
    parent.join()
    assert all_end([pid.value])


def test_a_worker_leaves_signals_to_its_parent_and_heeds_it():
    ready = FORK.Event()
    with signals_held():
        worker = FORK.Process(target=waits, args=(ready,), daemon=True)
        worker.start()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # before it can have called follow_parent, and after
        stranger_sends(number, worker.pid)
    assert ready.wait(30)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        stranger_sends(number, worker.pid)
    worker.join(0.2)
    assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


@dataclass
class Fatal(ByteStage):
    """`kill` ends the worker that meets it; `stop` signals the process that prepares the data."""

    main: int = 0

    def encode_one(self, sample):
        if sample.text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if sample.text == "stop":
            os.kill(self.main, signal.SIGTERM)
            if os.getpid() != self.main:
                time.sleep(60)  # the worker is in the middle of its work
        return super().encode_one(sample)


def test_bc078_a_worker_that_tokenizes_died(data):
    with pytest.raises(RunError) as caught:
        prepare(data(["a", "kill"]), stage=Fatal(), num_proc=2)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("BC078", "data.num_proc")
    assert "was killed by SIGKILL, probably by the out-of-memory killer" in problem.problem
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([None, 0, -9], "was killed by SIGKILL, probably"),
        ([-9, -11], "was killed by SIGSEGV"),
        ([-9, 1], "exited with code 1. Set data.num_proc to fewer processes, or to 0. A script of your own needs"),
    ],
)
def test_the_worker_that_ended_first_is_told_from_those_that_were_stopped(codes, words):
    assert words in str(died(codes))


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_while_tokenizing_is_told_and_leaves_nothing(data, tmp_path, capsys, processes):
    cache = tmp_path / "cache"
    with pytest.raises(Interrupted) as caught, EarlyInterrupts():
        prepare(data(["a", "stop"]), stage=Fatal(main=os.getpid()), num_proc=processes, cache_dir=str(cache))
    assert caught.value.number == signal.SIGTERM
    assert "interrupted while tokenizing: no token shards were kept" in capsys.readouterr().err
    assert [path.suffix for path in (cache / "tokens").iterdir()] == [".lock"]
    assert multiprocessing.active_children() == []


class Collates:
    """A stage whose batches hold the worker's process id, or fail in row 3."""

    def __init__(self, fails=False):
        self.fails = fails

    def collate(self, *, examples, rows, counts):
        if self.fails and 3 in rows:
            raise one(PluginError, "BC060", "the stage is broken", "Report it", field="here")
        pid = torch.tensor([[os.getpid()]])
        return Batch(input_ids=pid, position_ids=pid, cu_seqlens=pid, document_lengths=(1,), rows=tuple(rows), count=1)


def batches(stage, workers=1):
    lengths = np.ones(200, dtype=np.int32)
    options = PlanOptions(
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        world_size=1,
        seed=0,
        packing=False,
        max_length=8,
        shuffle=False,
    )
    plan = BatchPlan(lengths=lengths, counts=lengths, rows=np.arange(200), options=options)
    store = SimpleNamespace(example=lambda row: {}, counts=lengths)
    windows = rank_windows(store=store, stage=stage, plan=plan, rank=0, num_workers=workers, pin_memory=False)
    for _, micros in windows:
        for _, batch in micros:
            yield batch


def test_bc078_a_data_loader_worker_died():
    def train():
        with worker_deaths():
            for at, batch in enumerate(batches(Collates())):
                if at == 0:
                    os.kill(int(batch.input_ids), signal.SIGKILL)

    with pytest.raises(RunError) as caught:
        train()
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("BC078", "data.num_workers")
    assert "out-of-memory killer" in problem.fix


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "Caught RuntimeError in DataLoader worker process 0.\nunable to write to file </torch_1_2_3>: No space left on "
        "device (28)",
    ],
)
def test_bc045_no_room_in_shared_memory(text):
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(RunError, match=r"BC045 /dev/shm data.num_workers: .*--shm-size"), worker_deaths():
        raise RuntimeError(text)
    signal.signal(signal.SIGCHLD, before)


def test_a_data_loader_worker_survives_the_signals_of_a_terminal_and_of_a_scheduler():
    found = set()
    for at, batch in enumerate(batches(Collates())):
        found.add(int(batch.input_ids))
        if at == 5:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                stranger_sends(number, found.copy().pop())
    assert len(found) == 1
    assert at == 199
    assert all_end(found)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_arrives_whole(workers):
    with pytest.raises(BumbleError) as caught:
        list(batches(Collates(fails=True), workers))
    assert str(caught.value) == "BC060 here: the stage is broken. Report it."


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="something else"), worker_deaths():
        raise RuntimeError("something else")
