"""What compiles DeepSpeed's operators takes everything that it started along."""

import multiprocessing
import sys
import time

from bumblecore_plugins.engines.zero_build import run_with_children
from leftovers import all_end

FORK = multiprocessing.get_context("fork")
COMPILER = """
import subprocess, sys
from bumblecore_plugins.engines.zero_build import end_with_parent
end_with_parent()
compiler = subprocess.Popen(["sleep", "300"], start_new_session=True)  # ninja gives each a process group of its own
open(sys.argv[1], "w").write(str(compiler.pid) + "\\n")
compiler.wait()
"""


def test_compilers_end_with_a_run_that_is_killed(tmp_path):
    pid = tmp_path / "pid"
    parent = FORK.Process(target=run_with_children, args=([sys.executable, "-c", COMPILER, str(pid)],))
    parent.start()
    until = time.monotonic() + 60
    while not (pid.exists() and pid.read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.02)
    parent.kill()
    parent.join()
    assert all_end([int(pid.read_text())])


def test_the_outcome_is_that_of_the_command():
    assert run_with_children([sys.executable, "-c", ""])
    assert not run_with_children([sys.executable, "-c", "raise SystemExit(3)"])
