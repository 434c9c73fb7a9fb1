"""Keeps `python -m bumblecore_core` from importing the working directory's files in place of libraries.

`-m` puts the working directory first on `sys.path`; a `random.py` or `yaml.py` there would run instead of the real one.
Python 3.11 has `-P` and PYTHONSAFEPATH against that, which 3.10 lacks and nobody types. `bumble -p MODULE` looks in the
working directory by itself (`registry.collect`).
"""

import os
import sys

NAME = __name__.partition(".")[0]


def leave_out_working_directory() -> None:
    """Takes the entry that `-m` has added off `sys.path`, while `-m` imports this package and no other one."""
    asked = any(option == f"-m{NAME}" for option in sys.orig_argv) or ("-m", NAME) in zip(
        sys.orig_argv, sys.orig_argv[1:], strict=False
    )
    being_located = sys.argv[:1] == ["-m"]  # until Python has found the module, its path stands there afterwards
    if asked and being_located and not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]


leave_out_working_directory()
