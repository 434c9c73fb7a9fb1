"""Prints the dependencies in pyproject.toml as requirements for pip.

    python .ci/requirements.py [--oldest] [NAME …]

`--oldest`: each pinned to its lower bound. Names: print only these.
"""

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def dependencies() -> dict[str, str]:
    """Each requirement by name, such as `{"click": "click>=8.2"}`. Read without tomllib, which Python 3.10 lacks."""
    block = re.search(r"^dependencies = \[\n(.*?)^\]", PROJECT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if block is None:
        raise SystemExit(f"{PROJECT}: no dependencies found")
    return {re.split(r"[><=]", line)[0]: line for line in re.findall(r'"(.+)"', block[1])}


def oldest(requirement: str) -> str:
    """`click>=8.2,<9` as `click==8.2`."""
    return requirement.split(",")[0].replace(">=", "==")


def main(arguments: list[str]) -> None:
    found = dependencies()
    names = [argument for argument in arguments if argument != "--oldest"] or list(found)
    for name in names:
        print(oldest(found[name]) if "--oldest" in arguments else found[name])


if __name__ == "__main__":
    main(sys.argv[1:])
