"""What all ranks must have in common before they train together: configuration, data, model, versions, output_dir."""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import Problem, RunError, one
from bumblecore_core.protocols import Engine
from bumblecore_core.records import ByContent, PerHost
from bumblecore_core.registry import singular
from bumblecore_core.run.agree import on_all_ranks
from bumblecore_core.run.data.plan import BatchPlan
from bumblecore_core.run.lock import BY_CONTENT
from bumblecore_core.run.named_files import chosen_plugins

PER_HOST = (
    "output_dir",  # rank 0's own nonce is looked for instead: see `require_shared`
    "loggers",
    "data.cache_dir",
    "data.num_proc",
    "data.num_workers",
    "train.peak_tflops",
    *BY_CONTENT,
)
"""Config keys that may differ between hosts; of those in `BY_CONTENT` the content is compared."""
DIGEST_BITS, DIGEST_PARTS = 48, 4  # a float64 holds 53 bits exactly
SHOWN = 20
SHARED_WAIT = 65.0  # seconds: NFS clients may take up to 60 (acdirmax) to see a new file


def compared_config(resolved: ResolvedRun, engine: Engine, *, overwrite: bool) -> dict[str, Any]:
    """What must be the same on all ranks before anything is read: the config without what may differ by host, and what
    it came to on this rank's device."""
    skipped = [*PER_HOST, *_per_host_options(resolved)]
    config = {
        key: value
        for key, value in _leaves(resolved.to_dict())
        if not any(key == name or key.startswith(f"{name}.") for name in skipped)
    }
    return {**config, "--overwrite": overwrite, "engine.device": engine.device.type, "model.dtype": str(engine.dtype)}


def compared_contents(lock: Mapping[str, Any], plan: BatchPlan) -> dict[str, Any]:
    """What must be the same on all ranks before the model is loaded: data, order of the rows, tokenizer, model,
    plugins, library versions."""
    first = repr([micro.rows for rank in plan.window(0).micro_batches for micro in rank])
    rows = hashlib.sha256(first.encode()).hexdigest()
    plugins = {
        f"plugin {singular(one['kind'])} {one['name']}": [one["distribution"], one["version"], one["files"]]
        for one in lock["plugins"]
        if one["kind"] != "loggers"
    }
    return {
        **{key: value for key, value in lock.items() if key not in ("config", "plugins", "format")},
        **plugins,
        "batch plan": f"{plan.total_steps} steps, the first of rows with the hash {rows[:12]}",
    }


def require_same(engine: Engine, facts: Mapping[str, Any]) -> None:
    """Raises `RunError` BC088 on all ranks where `facts` differ from rank 0's on any of them: each key, the ranks, and
    both values. Costs a sum of a few numbers a rank where they are equal. A collective."""
    if engine.world_size == 1:
        return
    own = {key: json.dumps(value, sort_keys=True, default=str) for key, value in _leaves(facts)}
    plain = json.dumps(own, sort_keys=True).encode()
    digests = _gathered(engine, _digest(plain))
    if all(digest == digests[0] for digest in digests):
        return
    hosts = [text.decode() for text in _gather_texts(engine, socket.gethostname().encode())]
    first = json.loads(_text_of_first(engine, plain))
    differing = [key for key in first | own if first.get(key) != own.get(key)][:SHOWN]
    mine = json.dumps([[key, _brief(first.get(key)), _brief(own.get(key))] for key in differing]).encode()
    found: dict[tuple[str, str, str], list[int]] = {}
    for rank, text in enumerate(_gather_texts(engine, mine)):
        for key, of_first, of_rank in json.loads(text):
            found.setdefault((key, of_first, of_rank), []).append(rank)
    raise RunError([_difference(key, values, ranks, hosts) for (key, *values), ranks in found.items()])


def require_shared(engine: Engine, directory: Path) -> None:
    """Raises `RunError` BC089 on all ranks where one of them does not find in its `output_dir` what rank 0 writes
    there. A collective."""
    if engine.world_size == 1:
        return
    number = int(engine.sum_over_ranks([float(secrets.randbits(DIGEST_BITS) if engine.rank == 0 else 0)])[0])
    probe = directory / f".probe-{number}"
    on_all_ranks(engine, lambda: probe.touch() if engine.rank == 0 else None, "writing to the output directory")
    try:
        on_all_ranks(engine, lambda: _find(probe, engine.rank), "looking for rank 0's files in the output directory")
    finally:
        if engine.rank == 0:
            probe.unlink(missing_ok=True)


def _find(probe: Path, rank: int) -> None:
    end = time.monotonic() + SHARED_WAIT
    while not probe.exists():
        if time.monotonic() > end:
            problem = f"rank {rank} on {socket.gethostname()} does not see here what rank 0 writes"
            fix = "Put output_dir on a file system that all machines share, under one path"
            raise one(RunError, "BC089", problem, fix, place=str(probe.parent.absolute()), field="output_dir")
        time.sleep(0.2)


def _difference(key: str, values: Sequence[str], ranks: Sequence[int], hosts: Sequence[str]) -> Problem:
    where = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}{' …' * (len(ranks) > 8)}"
    hosts_of = ", ".join(dict.fromkeys(hosts[rank] for rank in ranks[:8]))
    problem = f"is {values[1]} on {where} ({hosts_of}) and {values[0]} on rank 0 ({hosts[0]})"
    fix = "Start all ranks with the same configuration, data, model and versions"
    return Problem(code="BC088", field=key, problem=problem, fix=fix)


def _per_host_options(resolved: ResolvedRun) -> Iterator[str]:
    """Config keys of plugins' options that may differ by host, and of those whose files are compared by content."""
    for chosen in chosen_plugins(resolved):
        for name, field in type(chosen.options).model_fields.items():
            if any(isinstance(mark, PerHost | ByContent) for mark in field.metadata):
                yield f"{singular(chosen.record.kind)}.{name}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _brief(text: str | None) -> str:
    if text is None:
        return "not set"
    plain = text.strip('"')
    short = plain[:12] if len(plain) == 64 and plain.isalnum() else plain  # a SHA-256
    return short if len(short) <= 80 else f"{short[:77]}…"


def _digest(data: bytes) -> list[float]:
    digest = hashlib.sha256(data).digest()
    size = DIGEST_BITS // 8
    return [float(int.from_bytes(digest[at * size : (at + 1) * size], "big")) for at in range(DIGEST_PARTS)]


def _text_of_first(engine: Engine, text: bytes) -> bytes:
    """Rank 0's text. A collective."""
    length = int(engine.sum_over_ranks([float(len(text)) if engine.rank == 0 else 0.0])[0])
    own = text if engine.rank == 0 else bytes(length)
    return bytes(map(int, engine.sum_over_ranks([float(byte) for byte in own])))


def _gather_texts(engine: Engine, text: bytes) -> list[bytes]:
    """Each rank's text. A collective."""
    lengths = [int(values[0]) for values in _gathered(engine, [float(len(text))])]
    padded = [float(byte) for byte in text.ljust(max(lengths), b"\0")]
    texts = _gathered(engine, padded)
    return [bytes(map(int, values))[:length] for values, length in zip(texts, lengths, strict=True)]


def _gathered(engine: Engine, values: Sequence[float]) -> list[list[float]]:
    """Each rank's values, equally many on all of them: a sum in which each has a place of its own. A collective."""
    size = len(values)
    sums = engine.sum_over_ranks(
        [value if rank == engine.rank else 0.0 for rank in range(engine.world_size) for value in values]
    )
    return [sums[rank * size : (rank + 1) * size] for rank in range(engine.world_size)]
