"""The zoo's stored results: `python tests/zoo/results.py --write [TYPE …]` runs the types and writes docs/models.json.

Without names all types run (about two minutes on one core) and the file is written anew; with names, theirs are
replaced. docs/generate.py makes docs/models.md from that file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
from zoo.bench import make_bench  # noqa: E402
from zoo.checks import check_type, problems, refusal  # noqa: E402
from zoo.rows import ROWS  # noqa: E402

FILE = ROOT / "docs" / "models.json"
LIBRARIES = ("transformers", "peft", "torch")


def main(arguments: Sequence[str]) -> int:
    """Runs the named types, or all, prints a line for each, and with `--write` stores what was found. 1 where one of
    them failed: it is not stored."""
    names = [argument for argument in arguments if argument != "--write"]
    stored = json.loads(FILE.read_text(encoding="utf-8"))["types"] if names and FILE.exists() else {}
    new = _run(names)
    found = {row.name: new.get(row.name) or stored[row.name] for row in ROWS if row.name in {*new, *stored}}
    if "--write" in arguments:
        made_with = {library: version(library).split("+")[0] for library in LIBRARIES}
        text = json.dumps({"versions": made_with, "types": found}, indent=1, ensure_ascii=False)
        FILE.write_text(text + "\n", encoding="utf-8")
    return 0 if len(new) == len(names or ROWS) else 1


def _run(names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        os.environ["BUMBLE_CACHE"] = directory
        bench = make_bench(Path(directory))
        for row in ROWS:
            if names and row.name not in names:
                continue
            if row.refused:
                print(f"{row.name}: {refusal(bench, row)}", flush=True)
                found[row.name] = {"refused": row.refused}
                continue
            try:
                result = check_type(bench, row)
                wrong = problems(row, result)
            except Exception as error:
                wrong = [f"{type(error).__name__}: {error}"]
            if wrong:
                print(f"{row.name}: FAILED {'; '.join(wrong)}", flush=True)
                continue
            found[row.name] = result
            result["attention"] = result["attention"].split(";")[0]
            result["documents"] = "one per pass" if row.one_per_pass else "together"
            result["differences"] = {name: float(f"{value:.0e}") for name, value in result["differences"].items()}
            print(f"{row.name}: {result}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
