"""Stands in for a plugin's object: names the plugin at fault where a method raises or returns the wrong thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import MethodType
from typing import Any

import torch

from bumblecore_core.errors import BumbleError
from bumblecore_core.run.blame import Plugin, at_fault, blamed, breach, passes, raised
from bumblecore_core.run.built import check_first_step
from bumblecore_core.run.files import is_disk_error
from bumblecore_core.run.returned import ADAPTER_CONTRACTS, ENGINE_CONTRACTS, Contract, stage_contracts

SCHEDULE = "advance_schedule"
WRITER = "training_state"
WRITES = ("save", WRITER)


class Guarded:
    """A stage, an adapter or an engine as the core calls it. Attributes are the object's own."""

    def __init__(self, inner: Any, plugin: Plugin, contracts: Mapping[str, Contract]) -> None:
        self._inner, self._plugin, self._contracts = inner, plugin, contracts

    def __reduce__(self) -> tuple[Any, ...]:
        return Guarded, (self._inner, self._plugin, self._contracts)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # what copying and pickling look for before there is an inner object
            raise AttributeError(attribute)
        value = getattr(self._inner, attribute)
        if not callable(value):
            return value
        call = self.__dict__[attribute] = self._guarding(value, attribute)  # found there the next time
        return call

    def _guarding(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        contract = self._contracts.get(name)

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                result = method(*args, **kwargs)
            except (Exception, SystemExit) as error:
                if passes(error) or (name in WRITES and is_disk_error(error)):
                    raise
                if (named := self._named(error, name)) is None:
                    raise
                raise named from error
            if contract is not None and (fault := contract.fault(result, kwargs)):
                raise breach(self._plugin, fault, contract.wants)
            return self._guarding(result, WRITES[0]) if name == WRITER else result

        return call

    def _named(self, error: BaseException, method: str) -> BumbleError | None:
        return raised(self._plugin, error)


class GuardedEngine(Guarded):
    """An engine runs other plugins' code and the core's own in its methods: whose frame was innermost is at fault."""

    def __init__(self, inner: Any, plugin: Plugin, others: Sequence[Plugin], scheduler: Plugin) -> None:
        super().__init__(inner, plugin, ENGINE_CONTRACTS)
        self._others, self._scheduler = (*others, plugin), scheduler

    def _named(self, error: BaseException, method: str) -> BumbleError | None:
        culprit = at_fault(error, self._others)
        if method == SCHEDULE and culprit == self._plugin and not raised_by(self._plugin, error):
            culprit = self._scheduler  # a schedule of torch's own classes, which the engine steps
        return None if culprit is None else raised(culprit, error)


def raised_by(plugin: Plugin, error: BaseException) -> bool:
    """Whether the very frame that raised is the plugin's."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    module = "" if innermost is None else str(innermost.tb_frame.f_globals.get("__name__", ""))
    return module == plugin.package or module.startswith(f"{plugin.package}.")


def guarded_stage(stage: Any, plugin: Plugin, vocabulary: int | None) -> Any:
    """`stage`, whose batches hold token ids below `vocabulary` (None: not known)."""
    return Guarded(stage, plugin, stage_contracts(stage, vocabulary))


def guarded_adapter(adapter: Any, plugin: Plugin) -> Any:
    """`adapter` behind its contract."""
    return Guarded(adapter, plugin, ADAPTER_CONTRACTS)


def guard_steps(optimizer: torch.optim.Optimizer, plugin: Plugin) -> None:
    """Has an optimizer's own `step` name the plugin where it raises, and looks at what the first step left behind. The
    object keeps its class, which engines look at; it stays a bound method, which torch's schedules take apart."""
    step = optimizer.step
    fresh = True

    @wraps(step)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal fresh
        with blamed(plugin):
            result = step(*args, **kwargs)
        if fresh:
            fresh = False
            check_first_step(plugin, optimizer)
        return result

    optimizer.step = MethodType(guarded, optimizer)  # type: ignore[method-assign]
