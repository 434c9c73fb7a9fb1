"""One process at a time holds an output directory, and the kernel gives it back."""

import json
import os
import signal
import socket
from contextlib import contextmanager

import pytest

from bumblecore_core.errors import RunError
from bumblecore_core.run.directory_lock import LOCK, held


@contextmanager
def another_process(action):
    """A child that runs `action(ready)` and then waits to be killed; entered once the child has called `ready`."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(told)
            action(lambda text="": os.write(tell, f"{text}\n".encode()))
        except BaseException as error:
            os.write(tell, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(0)
    os.close(tell)
    try:
        with os.fdopen(told) as opened:
            yield child, opened.readline().strip()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def holding(directory, *, needed=True):
    """What a child does that takes the lock and keeps it."""

    def action(ready):
        with held(directory, needed=needed):
            ready()
            while True:
                signal.pause()

    return action


def trying(directory, *, needed=True):
    """What a child does that tells whether it got the lock."""

    def action(ready):
        try:
            with held(directory, needed=needed):
                ready("held")
        except RunError as error:
            ready(str(error))

    return action


def test_a_second_process_is_told_who_writes_there(tmp_path):
    with another_process(holding(tmp_path)) as (child, _), pytest.raises(RunError) as caught:
        held(tmp_path, needed=True).__enter__()
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.place) == ("BC044", "output_dir", str(tmp_path))
    assert f"process {child} on {socket.gethostname()}" in problem.problem


def test_this_process_keeps_another_out_while_it_is_inside_and_no_longer(tmp_path):
    with held(tmp_path, needed=True), another_process(trying(tmp_path)) as (_, said):
        assert said.startswith("BC044")
        assert f"process {os.getpid()} on {socket.gethostname()}" in said
    with another_process(trying(tmp_path)) as (_, said):
        assert said == "held"


def test_what_a_longer_name_left_in_the_file_is_gone(tmp_path):
    (tmp_path / LOCK).write_text("x" * 500)
    with held(tmp_path, needed=True):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_refused_process_leaves_the_holder_its_lock_and_its_name(tmp_path):
    with held(tmp_path, needed=True):
        for _ in range(3):
            with another_process(trying(tmp_path)) as (_, said):
                assert f"process {os.getpid()} " in said
        assert json.loads((tmp_path / LOCK).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}


def test_the_lock_is_gone_once_its_holder_is_killed(tmp_path):
    with another_process(holding(tmp_path)) as (child, _):
        pass  # killed with SIGKILL on leaving
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == child  # the file stays, and holds nobody up
    with held(tmp_path, needed=True):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_child_of_the_holder_does_not_keep_the_lock(tmp_path):
    with held(tmp_path, needed=True):
        told, tell = os.pipe()
        child = os.fork()  # inherits the open file
        if child == 0:
            os.close(tell)
            os.read(told, 1)  # ends when the pipe is closed
            os._exit(0)
        os.close(told)
    try:
        with another_process(trying(tmp_path)) as (_, said):
            assert said == "held"
    finally:
        os.close(tell)
        os.waitpid(child, 0)


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path, needed=True):
        raise ZeroDivisionError
    with another_process(trying(tmp_path)) as (_, said):
        assert said == "held"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}', "\0\0"])
def test_an_unreadable_name_of_the_holder_is_no_crash(tmp_path, text):
    with another_process(holding(tmp_path)):
        (tmp_path / LOCK).write_text(text)
        with pytest.raises(RunError, match=r"BC044.*another process is writing here"), held(tmp_path, needed=True):
            pass


def test_a_rank_that_needs_no_lock_takes_none_and_makes_no_file(tmp_path):
    with held(tmp_path, needed=False):
        assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "missing", needed=False):
        assert not (tmp_path / "missing").exists()


def test_a_rank_that_needs_no_lock_is_not_kept_out(tmp_path):
    with another_process(holding(tmp_path)), held(tmp_path, needed=False):
        pass
    with held(tmp_path, needed=True), another_process(trying(tmp_path, needed=False)) as (_, said):
        assert said == "held"


def test_two_directories_are_held_apart(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with another_process(holding(tmp_path / "one")), held(tmp_path / "two", needed=True):
        pass
