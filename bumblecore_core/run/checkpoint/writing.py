"""Writing a directory that is committed whole: each rank its files, rank 0 the manifest and the rename."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import RunError, one
from bumblecore_core.protocols import Adapter
from bumblecore_core.run.checkpoint.manifest import FileEntry, Manifest, describe, write_manifest
from bumblecore_core.run.files import disk_errors, final_path
from bumblecore_core.toolkit.adapters import save_config_if_resized
from bumblecore_core.toolkit.disk import put_in_place, sync
from bumblecore_core.toolkit.generation import save_generation_config, save_model
from bumblecore_core.toolkit.permissions import follow_umask
from bumblecore_core.toolkit.processor_files import copy_processor_files

if TYPE_CHECKING:
    import torch

STATE = "state"
PART = "part.json"
SHOWN_WEIGHTS = 3


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """What is saved of a model. `unchanged`: weights by name that are written as they are here, whatever the engine
    holds; `processor_files`: copied."""

    model: Any
    tokenizer: Any
    adapter: Adapter | None
    max_shard_size: str
    unchanged: Mapping[str, torch.Tensor] = field(default_factory=dict)
    processor_files: tuple[Path, ...] = ()

    @property
    def wanted(self) -> Callable[[str], bool] | None:
        """Which weights of the engine are written; None for all."""
        adapter, unchanged = self.adapter, self.unchanged
        if adapter is not None:
            return lambda name: adapter.saves(name=name)
        return (lambda name: name not in unchanged) if unchanged else None

    def write(self, directory: Path, state: Mapping[str, torch.Tensor]) -> None:
        """Safetensors shards (or only the adapter), config, generation config, tokenizer and chat template. Raises
        `RunError` BC072 where a weight is not finite: rotation must not trade a good checkpoint for a useless one."""
        require_finite(state, final_path(directory))
        if self.adapter is None:
            weights = {**state, **self.unchanged}
            with _quietly():
                save_model(self.model, directory, state_dict=weights, max_shard_size=self.max_shard_size)
        else:
            self.adapter.save(model=self.model, state=state, directory=directory)
            save_generation_config(self.model, directory)
            save_config_if_resized(self.model, directory)
        self.tokenizer.save_pretrained(directory)
        copy_processor_files(self.processor_files, directory, self.tokenizer)


def require_finite(state: Mapping[str, torch.Tensor], place: Path) -> None:
    """Raises `RunError` BC072, with names, where a weight has a NaN or an infinity."""
    import torch

    floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel()}
    # one pass without a temporary of the weight's size; NaN is its own minimum and maximum
    wrong = [name for name, tensor in floating.items() if not torch.stack(torch.aminmax(tensor)).isfinite().all()]
    if wrong:
        names = ", ".join(wrong[:SHOWN_WEIGHTS]) + " …" * (len(wrong) > SHOWN_WEIGHTS)
        problem = f"{len(wrong)} of {len(state)} weights are not finite ({names}), so this is not saved"
        fix = "Lower optimizer.lr or set train.max_grad_norm, and resume from an earlier checkpoint or start over"
        raise one(RunError, "BC072", problem, fix, place=str(place))


def rank_directory(temporary: Path, rank: int) -> Path:
    """Where a rank's own training state lies."""
    return temporary / STATE / f"rank-{rank}"


def write_part(temporary: Path, rank: int, write: Callable[[Path], None]) -> None:
    """Has `write` fill this rank's part of `temporary`, syncs it, notes sizes and hashes in `state/rank-N/part.json`.

    Rank 0's part is everything outside the other ranks' directories. Raises `RunError` BC045 where the disk is full.
    """
    with disk_errors(temporary):
        own = rank_directory(temporary, rank)
        own.mkdir(parents=True, exist_ok=True)
        write(temporary)
        entries = {}
        for file in _files(temporary if rank == 0 else own):
            name = file.relative_to(temporary)
            if rank == 0 and len(name.parts) > 2 and name.parts[0] == STATE and name.parts[1] != own.name:
                continue
            follow_umask(file)
            sync(file)
            entries[name.as_posix()] = asdict(describe(file))
        (own / PART).write_text(json.dumps(entries), encoding="utf-8")


def commit(temporary: Path, directory: Path, *, world_size: int, facts: Mapping[str, Any]) -> None:
    """Makes the written `temporary` the directory `directory`; for rank 0, once every rank's part is written."""
    with disk_errors(directory):
        files: dict[str, FileEntry] = {}
        for rank in range(world_size):
            part = rank_directory(temporary, rank) / PART
            for name, entry in json.loads(part.read_text(encoding="utf-8")).items():
                files[name] = FileEntry(**entry)
            part.unlink()
        _remove_empty(temporary / STATE)
        for file in _files(temporary):
            name = file.relative_to(temporary).as_posix()
            if name not in files:  # an engine wrote it outside its rank's own directory
                follow_umask(file)
                sync(file)
                files[name] = describe(file)
        write_manifest(temporary, Manifest(files=files, facts=facts))
        for path in [*temporary.rglob("*"), temporary]:
            if path.is_dir():
                sync(path)
        put_in_place(temporary, directory)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _remove_empty(state: Path) -> None:
    """Directories of ranks that had nothing to save, and with them `state` itself where nothing is in it."""
    for directory in [*sorted(state.glob("rank-*")), state]:
        if not any(directory.iterdir()):
            directory.rmdir()


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences transformers' own progress bars: the run's loggers say what is saved. And keeps accelerate, which
    `save_pretrained` has look whether DeepSpeed wrapped the model, from importing DeepSpeed (seconds) to know that."""
    from accelerate.utils import other
    from transformers.utils import logging

    shown, available = logging.is_progress_bar_enabled(), other.is_deepspeed_available
    logging.disable_progress_bar()
    other.is_deepspeed_available = lambda: False  # what is saved is the inner model
    try:
        yield
    finally:
        other.is_deepspeed_available = available
        if shown:
            logging.enable_progress_bar()
