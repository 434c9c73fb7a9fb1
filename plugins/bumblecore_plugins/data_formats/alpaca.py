"""Single tasks with an optional history: `instruction`, `input`, `output`, `system`, `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bumblecore_core import ChatSample, FeedbackSample, Message, PreferenceSample, RowError
from bumblecore_plugins.data_formats import AlpacaOptions
from bumblecore_plugins.data_formats.fields import boolean, need, need_list, optional_text, text


class AlpacaFormat:
    """Rows with `chosen` and `rejected` → `PreferenceSample`, with a label → `FeedbackSample`, else → `ChatSample`."""

    def __init__(self, options: AlpacaOptions) -> None:
        self.names = options

    def convert(self, *, row: Mapping[str, Any]) -> ChatSample | PreferenceSample | FeedbackSample:
        """System message, history, then instruction and input joined by a line end. Raises `RowError` BC007, BC011."""
        names = self.names
        prompt = self._prompt(row)
        if row.get(names.chosen) is not None and row.get(names.rejected) is not None:
            return PreferenceSample(
                prompt=prompt,
                chosen=(_assistant(text(row[names.chosen], names.chosen)),),
                rejected=(_assistant(text(row[names.rejected], names.rejected)),),
            )
        reply = _assistant(text(need(row, names.output), names.output))
        if row.get(names.label) is not None:
            return FeedbackSample(prompt=prompt, completion=(reply,), label=boolean(row[names.label], names.label))
        return ChatSample(messages=(*prompt, reply))

    def _prompt(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        names = self.names
        messages: list[Message] = []
        system = optional_text(row, names.system)
        if system:
            messages.append({"role": "system", "content": system})
        history = row.get(names.history)
        if history is not None:
            for index, pair in enumerate(need_list(history, names.history)):
                messages.extend(_pair(pair, f"{names.history}[{index}]"))
        instruction = text(need(row, names.instruction), names.instruction)
        extra = optional_text(row, names.input)
        parts = [part for part in (instruction, extra) if part]
        return (*messages, {"role": "user", "content": "\n".join(parts)})


def _pair(pair: Any, path: str) -> tuple[Message, Message]:
    turns = need_list(pair, path)
    if len(turns) != 2:
        raise RowError(
            code="BC011",
            field=path,
            problem=f"a list of {len(turns)} where a pair of user and assistant text is needed",
            fix="Write each earlier turn as [user, assistant]",
        )
    return {"role": "user", "content": text(turns[0], f"{path}[0]")}, _assistant(text(turns[1], f"{path}[1]"))


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
