"""How long each plugin took in each of its phases, for `bumble run --profile-plugins`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from bumblecore_core.registry import singular

T = TypeVar("T")
Key = tuple[str, str, str]


class PluginTimes:
    """Calls and wall seconds by (kind, plugin, phase) in this process: one rank's. A phase is a method of the plugin's.

    Phases nest: an engine's `forward_backward` holds the stage's `step`, which holds the loss. Work in data workers is
    not seen, and on a GPU a call ends when its kernels are queued, not when they are done.
    """

    def __init__(self) -> None:
        self._found: dict[Key, list[float]] = {}

    def add(self, kind: str, name: str, phase: str, seconds: float) -> None:
        """Takes notice of a call."""
        entry = self._found.setdefault((kind, name, phase), [0, 0.0])
        entry[0] += 1
        entry[1] += seconds

    def watch(self, name: str, optimizer: Any) -> Any:
        """Has an optimizer's steps timed through its own hooks (engines look at its class, so it stays what it is)."""
        begun: list[float] = []
        optimizer.register_step_pre_hook(lambda *_: begun.append(time.perf_counter()))
        optimizer.register_step_post_hook(
            lambda *_: self.add("optimizers", name, "step", time.perf_counter() - begun.pop())
        )
        return optimizer

    def lines(self, seconds: float) -> list[str]:
        """A table, the longest time first, with shares of a run of `seconds`."""
        rows = sorted(self._found.items(), key=lambda item: -item[1][1])
        cells = [("plugin", "phase", "calls", "seconds", "share", "ms a call")]
        for (kind, name, phase), (calls, total) in rows:
            share, each = f"{total / max(seconds, 1e-9):.2%}", f"{1e3 * total / calls:.3f}"
            cells.append((f"{singular(kind)} {name}", phase, f"{calls:.0f}", f"{total:.3f}", share, each))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [
            "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(line))
            for line in ([*zip(row, widths, strict=True)] for row in cells)
        ]


def timed(times: PluginTimes | None, kind: str, name: str, built: T) -> T:
    """`built` itself without `times`, else a stand-in that times each of its methods."""
    return built if times is None else _Timed(built, kind, name, times)  # type: ignore[return-value]


class _Timed:
    def __init__(self, inner: Any, kind: str, name: str, times: PluginTimes) -> None:
        self._inner, self._key, self._times = inner, (kind, name), times
        self.__wrapped__ = inner  # `inspect.signature` shows the plugin's own

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # what copying and pickling look for before there is an inner plugin
            raise AttributeError(attribute)
        value = getattr(self._inner, attribute)
        return self._calling(value, attribute) if callable(value) else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._calling(self._inner, "call")(*args, **kwargs)

    def _calling(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._times.add(*self._key, phase, time.perf_counter() - started)

        return call
