"""Builds a run's stage, in this process or in one that tokenizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bumblecore_core.protocols import Stage, StageContext
from bumblecore_core.records import Options, StageRecord
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.run.blame import Plugin, blamed
from bumblecore_core.run.built import check_built
from bumblecore_core.toolkit.new_tokens import add_tokens
from bumblecore_core.toolkit.templates import ChatTemplate
from bumblecore_core.toolkit.tokenizers import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class StageFactory:
    """Called without arguments, gives the stage with a tokenizer of its own.

    Pickles as names and options: a worker process finds the stage's record again through its own registry.
    """

    stage_name: str
    options: Options
    tokenizer_dir: str
    chat_template: str | None
    trust_remote_code: bool
    max_length: int
    strict: bool
    template_kwargs: Mapping[str, Any]
    special_tokens: Literal["control", "text", "refuse"]
    switches: PluginSwitches
    template_date: str | None = None
    add_tokens: tuple[str, ...] = ()

    def __call__(self) -> Stage:
        record = load_registry(self.switches).get("stages", self.stage_name)
        return self.stage(record, self.tokenizer())

    def tokenizer(self) -> Any:
        """The run's tokenizer, its chat template set and new tokens added. Raises as `load_tokenizer` and `add_tokens`
        do."""
        tokenizer = load_tokenizer(
            self.tokenizer_dir, chat_template=self.chat_template, trust_remote_code=self.trust_remote_code
        )
        add_tokens(tokenizer, self.add_tokens)
        return tokenizer

    def rendering(self) -> dict[str, Any]:
        """What the tokens of a conversation depend on beside the tokenizer."""
        return {
            "template_kwargs": dict(self.template_kwargs),
            "template_date": self.template_date,
            "special_tokens": self.special_tokens,
        }

    def stage(self, record: StageRecord, tokenizer: Any) -> Stage:
        """The stage with the given tokenizer."""
        context = StageContext(
            tokenizer=tokenizer,
            max_length=self.max_length,
            strict=self.strict,
            template_kwargs=self.template_kwargs,
            template_date=self.template_date,
            special_tokens=self.special_tokens,
        )
        plugin = Plugin.of(record)
        with blamed(plugin):
            stage = record.build(options=self.options, context=context)
        check_built(plugin, stage)
        return stage


def trained_stop_ids(record: StageRecord, tokenizer: Any) -> list[int]:
    """Ids of the tokens with which a model learns to end its replies; none for a stage that trains on plain texts."""
    return ChatTemplate(tokenizer).end_of_turn_ids() if record.reads != "text" and tokenizer.chat_template else []
