"""What a frozen reference model says of every example: computed once before training, kept on disk, and freed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import CODES, ConfigError, one
from bumblecore_core.protocols import Engine, Reference
from bumblecore_core.registry import Registry
from bumblecore_core.run.agree import on_all_ranks
from bumblecore_core.run.assemble import Assembled, Prepared, load_start_model
from bumblecore_core.run.attention_choice import AttentionChoice
from bumblecore_core.run.attention_of_run import chosen_attention, shares_prefixes
from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.data.fingerprint import cache_dir_of
from bumblecore_core.run.data.loader import collate
from bumblecore_core.run.model import load_config
from bumblecore_core.run.model_fingerprint import code_and_config, named_weights, weights_fingerprint
from bumblecore_core.run.module import TrainModule
from bumblecore_core.run.reference_cache import (
    SUFFIX,
    DamagedFigures,
    circumstances,
    key_of,
    read_figures,
    write_figures,
)
from bumblecore_core.toolkit.policy import head_parameters, make_policy
from bumblecore_core.toolkit.tokenizers import resolve_model_dir
from bumblecore_core.values import Batch, StepOutput

if TYPE_CHECKING:
    from bumblecore_core.run.data.store import TokenStore

REFERENCE_STEP = "reference_step"
START, BASE, NONE = "start", "base", "none"
SUMMED_AT_ONCE = 1 << 16
Ask = Callable[[Batch], dict[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A reference that a run needs. `weights`: the fingerprint of its model; `files`: where each token store's figures
    are kept."""

    reference: Reference
    model_dir: Path
    weights: str
    files: dict[Path, Path]

    @property
    def another_model(self) -> bool:
        """Whether it is another model than the one that is trained."""
        return self.reference.model not in (START, BASE)

    @property
    def words(self) -> str:
        """What it is, for the start summary."""
        names = {START: "the start model", BASE: "the base model without its adapter"}
        return names.get(self.reference.model, str(self.model_dir))


def compares_with_reference(resolved: ResolvedRun) -> bool:
    """Whether the loss takes a reference model's figures."""
    loss = resolved.loss.record
    return loss.loss_kind != "token" and loss.needs_reference


def wanted_reference(prepared: Prepared, registry: Registry, engine: Engine) -> Wanted | None:
    """The reference that stage and loss want, or None. Raises `ConfigError` BC039 where the loss needs one and the
    stage's options say that there is none, or `base` is asked for without an adapter."""
    resolved = prepared.resolved
    loss = resolved.loss.record
    if not compares_with_reference(resolved):
        return None
    reference: Reference | None = getattr(prepared.stage, "reference", None)
    if reference is None:
        fix = "Choose a reference, or a loss that needs none, such as simpo or orpo"
        problem = f"the loss '{loss.name}' compares with a reference model, and the stage has none"
        raise one(ConfigError, "BC039", problem, fix, field="stage.reference")
    if reference.model == BASE and resolved.adapter is None:
        problem = "there is no adapter, so there is no base without one"
        raise one(ConfigError, "BC039", problem, "Set it to start, or choose an adapter", field="stage.reference")
    directory = (
        prepared.model_dir
        if reference.model in (START, BASE)
        else resolve_model_dir(reference.model, field="stage.reference")
    )
    cache = cache_dir_of(resolved.config.data)
    starts = resolved.adapter if reference.model == START else None
    weights = weights_fingerprint(directory, cache)
    if starts is not None and (named := named_weights(starts.options.model_dump(mode="json"), cache)):
        weights = key_of([weights, named])
    key = [
        weights,
        reference.model if reference.model in (START, BASE) else "",
        None if starts is None else [starts.name, starts.options.model_dump(mode="json"), resolved.config.train.seed],
        code_and_config(directory, trust_remote_code=resolved.config.model.trust_remote_code),
        _attention(prepared, registry, engine, directory).implementation,
        circumstances(prepared, engine),
        prepared.vocabulary.rows,  # more rows change every probability
    ]
    files = {
        store.directory: cache / "reference" / f"{key_of([*key, store.content])}{SUFFIX}" for store in stores(prepared)
    }
    return Wanted(reference=reference, model_dir=directory, weights=weights, files=files)


def stores(prepared: Prepared) -> list[TokenStore]:
    """The run's token stores: one, or two where evaluation has files of its own."""
    apart = prepared.eval_plan is not None and prepared.eval_store.directory != prepared.store.directory
    return [prepared.store, prepared.eval_store] if apart else [prepared.store]


def ask_before_training(
    wanted: Wanted | None, prepared: Prepared, registry: Registry, engine: Engine, *, resuming: bool
) -> tuple[str | None, list[str]]:
    """Has the token stores carry the reference's figures where that is possible before the model to train is there:
    from an earlier run, or from a model of its own, which is then freed. In words what was done (None where nothing
    was), and warnings. A collective."""
    if wanted is None:
        return None, []
    there, damaged = _attach_kept(wanted, prepared, engine)
    warnings = [f"BC075 {CODES['BC075']}: {len(damaged):,} ({damaged[0].parent})"] if damaged else []
    if there:
        return f"{wanted.words}, computed by an earlier run", warnings
    if not wanted.another_model and not (resuming and wanted.reference.model == START):
        return None, warnings
    attention = _attention(prepared, registry, engine, wanted.model_dir)
    return f"{wanted.words}, computed in {_ask_another(wanted, prepared, engine, attention):.1f} s and freed", warnings


def _attention(prepared: Prepared, registry: Registry, engine: Engine, directory: Path) -> AttentionChoice:
    """The attention of the reference model in `directory`."""
    config = None
    if directory != prepared.model_dir:
        config = load_config(directory, trust_remote_code=prepared.resolved.config.model.trust_remote_code)
    return chosen_attention(prepared, registry, engine, model_config=config)


def ask_what_is_trained(wanted: Wanted, prepared: Prepared, assembled: Assembled, engine: Engine) -> str:
    """The same by the model that is about to be trained. A collective."""
    return f"{wanted.words}, computed in {_ask_trained(wanted, prepared, assembled, engine):.1f} s; no second model"


def _attach_kept(wanted: Wanted, prepared: Prepared, engine: Engine) -> tuple[bool, list[Path]]:
    """Hands what an earlier run kept to the token stores. Whether all of it was there, on every rank; which files were
    damaged."""
    found, damaged = [], []
    for store in stores(prepared):
        path, values = wanted.files[store.directory], None
        try:
            values = read_figures(path, wanted.reference.columns, len(store))
        except DamagedFigures:
            damaged.append(path)
        found.append(values)
    there = engine.sum_over_ranks([float(all(values is not None for values in found))])[0] == engine.world_size
    if there:
        _attach(prepared, [values for values in found if values is not None])
    return there, damaged


def _ask_another(wanted: Wanted, prepared: Prepared, engine: Engine, attention: AttentionChoice) -> float:
    """Loads the reference model, asks it, and lets it go. Seconds. A collective."""
    model = load_start_model(
        prepared,
        wanted.model_dir,
        engine,
        attention=attention.implementation,
        with_adapter=wanted.reference.model == START,
    )
    resolved = prepared.resolved
    module = TrainModule(
        model=model,
        stage=prepared.stage,
        stage_plugin=Plugin.of(resolved.stage.record),
        loss=None,  # type: ignore[arg-type]  # it is not called
        loss_plugin=Plugin.of(resolved.loss.record),
        used_outside=head_parameters(model),
    )
    call = engine.frozen(module=module)
    apart, share = attention.against_isolation is None, shares_prefixes(prepared) and attention.against_sharing is None
    module.policy = call(lambda: make_policy(model, one_document=not apart, share_prefixes=share))
    module.asks = REFERENCE_STEP

    def ask(batch: Batch) -> dict[str, torch.Tensor]:
        output: StepOutput = call(batch.to(engine.device))
        return output.per_example

    return _ask_all(wanted, prepared, engine, ask)


def _ask_trained(wanted: Wanted, prepared: Prepared, assembled: Assembled, engine: Engine) -> float:
    """Asks the model that is about to be trained: its weights are the reference's still, or its adapter is put aside.
    Seconds. A collective."""
    module = assembled.module
    aside = nullcontext()
    if wanted.reference.model == BASE and assembled.adapter is not None:
        aside = assembled.adapter.base_policy(model=assembled.model)  # type: ignore[assignment]
    with aside, module.asking(REFERENCE_STEP):
        return _ask_all(wanted, prepared, engine, lambda batch: engine.evaluate(batch=batch).per_example)


def _ask_all(wanted: Wanted, prepared: Prepared, engine: Engine, ask: Ask) -> float:
    started = time.perf_counter()
    found = []
    for store in stores(prepared):
        values = _ask_store(wanted, prepared, store, engine, ask)
        path = wanted.files[store.directory]
        keep = partial(write_figures, path, values) if engine.rank == 0 else lambda: None
        on_all_ranks(engine, keep, "keeping the reference's figures")
        found.append(values)
    _attach(prepared, found)
    return time.perf_counter() - started


def _ask_store(
    wanted: Wanted, prepared: Prepared, store: TokenStore, engine: Engine, ask: Ask
) -> dict[str, np.ndarray]:
    """Each rank asks about its share of the micro-batches; all of them run the same number of forward passes."""
    values = {name: np.zeros(len(store), dtype=np.float64) for name in wanted.reference.columns}
    batches = _first_batches(prepared, store)
    passes = -(-len(batches) // engine.world_size)
    bar = tqdm(total=passes, unit="batch", desc="reference", disable=engine.rank != 0 or not sys.stderr.isatty())
    for turn in range(passes):
        at = turn * engine.world_size + engine.rank
        rows, first = batches[min(at, len(batches) - 1)]
        figures = ask(collate(store, prepared.stage, rows))
        if at < len(batches):
            for name, column in values.items():
                column[np.asarray(rows)[first]] = figures[name].double().cpu().numpy()[first]
        bar.update()
    bar.close()
    return {name: _of_all_ranks(column, engine) for name, column in values.items()}


def _first_batches(prepared: Prepared, store: TokenStore) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """The micro-batches in which the run's rows of this store are first met, in training or in evaluation, each with
    which of its rows that are: in them the policy computes a row as its reference did, to the bit, for the same kernels
    see the same shapes. Rows that the run does not reach are not asked about."""
    found: list[tuple[tuple[int, ...], np.ndarray]] = []
    seen: set[int] = set()
    for plan, of in ((prepared.plan, prepared.store), (prepared.eval_plan, prepared.eval_store)):
        if plan is None or of.directory != store.directory:
            continue
        wanted = set(plan.drawn_rows().tolist())
        for window in plan.windows():
            for micro in (micro for rank in window.micro_batches for micro in rank if micro.counts):
                first = np.asarray([row not in seen for row in micro.rows])
                if first.any():
                    found.append((micro.rows, first))
                    seen.update(micro.rows)
            if wanted <= seen:
                break
    return found


def _of_all_ranks(column: np.ndarray, engine: Engine) -> np.ndarray:
    """Each row's figure is of the rank that met it first and zero on the others, so that their sum is exact."""
    if engine.world_size > 1:
        parts = [column[at : at + SUMMED_AT_ONCE] for at in range(0, len(column), SUMMED_AT_ONCE)]
        column = np.concatenate([engine.sum_over_ranks(part.tolist()) for part in parts])
    return column


def _attach(prepared: Prepared, found: list[dict[str, np.ndarray]]) -> None:
    for store, values in zip(stores(prepared), found, strict=True):
        store.attach(values)
    if prepared.eval_store.directory == prepared.store.directory:
        prepared.eval_store.attach(found[0])
