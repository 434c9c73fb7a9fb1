"""Errors as part of the product: what is wrong, where, and what to do.

Every error that bad input can cause is a `BumbleError` holding one or more `Problem`s. The command line prints them as
single lines, `CODE place field: problem. Fix.`, and exits with the error's code; it never shows a traceback for them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

SHOWN_PROBLEMS = 20
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What must not reach a terminal or a log as it is: control characters, line separators, changes of the writing
direction, and surrogates, which no encoding can carry."""


def printable(text: str, *, keep: str = "") -> str:
    """`text` with each unprintable character that is not in `keep` as an escape, such as `\\x1b`."""

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        return character if character in keep else character.encode("unicode_escape").decode("ascii")

    return UNPRINTABLE.sub(escape, text)


LONGEST_PLACE, LONGEST_FIELD, LONGEST_TEXT = 4200, 200, 2000  # a path that can be opened has at most 4,096 characters


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong. `code` is a key of `CODES`; `place` is `file:line` or where a key came from."""

    code: str
    problem: str
    fix: str
    place: str = ""
    field: str = ""

    def __str__(self) -> str:
        place, field = _cut(self.place, LONGEST_PLACE), _cut(self.field, LONGEST_FIELD)
        where = " ".join(part for part in (self.code, place, field) if part)
        return printable(f"{where}: {_sentence(self.problem)} {_sentence(self.fix)}".rstrip())


def _sentence(text: str) -> str:
    """`text` on one line, ended by a full stop (a problem must stay one line, whatever a library's message holds)."""
    text = _cut(" ".join(text.split()), LONGEST_TEXT)
    return text if not text or text[-1] in ".!?…" else text + "."


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(eq=False)
class BumbleError(Exception):
    """Bad input of any sort: shows up to 20 problems, then a count. `exit_code` is what `bumble` ends with."""

    problems: Sequence[Problem]
    total: int = 0
    exit_code: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        self.problems = tuple(self.problems)
        self.total = max(self.total, len(self.problems))
        super().__init__(self.render())

    def render(self) -> str:
        """The lines a user sees."""
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if self.total > len(lines):
            lines.append(f"… and {self.total - len(lines)} more.")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()


class ConfigError(BumbleError):
    """The run's configuration is wrong."""


class PluginError(BumbleError):
    """A plugin is missing, broken, or clashes with another."""


class DataError(BumbleError):
    """A data file or a row of it is wrong."""


class ModelError(BumbleError):
    """A model, tokenizer or chat template is wrong or does not fit the run."""


class RunError(BumbleError):
    """The run cannot start or go on (device, output directory, non-finite loss)."""


class RowError(Exception):
    """Raised by a data format or a stage for one row; the core adds file and line and turns it into a `DataError`.

    `field` is a path inside the row, such as `messages[2].content`. Never put the row's text into `problem`.
    """

    def __init__(self, *, code: str, field: str, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = Problem(code=code, field=field, problem=problem, fix=fix)

    def at(self, place: str) -> Problem:
        """The same problem with its `file:line`."""
        return replace(self.problem, place=place)


def one(kind: type[BumbleError], code: str, problem: str, fix: str, *, place: str = "", field: str = "") -> BumbleError:
    """A `kind` error of a single problem: `raise one(ConfigError, "BC034", …, …)`."""
    return kind([Problem(code=code, problem=problem, fix=fix, place=place, field=field)])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest of `known`, else the whole list: always something the user can act on."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{near}'" for near in close) + "?"
    return f"known: {', '.join(names)}" if names else "none is known"


CODES: dict[str, str] = {
    "BC001": "a line or file is not valid JSON",
    "BC003": "a file is not UTF-8",
    "BC004": "a file's form differs from what its name says",
    "BC005": "NaN, Infinity or a duplicate key in a row",
    "BC006": "one file holds rows of different schemas",
    "BC007": "a row lacks a field",
    "BC008": "no row is left to train on",
    "BC009": "blank lines were skipped",
    "BC010": "the last line is torn",
    "BC011": "a field has the wrong type",
    "BC012": "an unknown role",
    "BC013": "roles out of order",
    "BC014": "a conversation ends with a user turn",
    "BC015": "an assistant reply is empty",
    "BC016": "a system message is not first",
    "BC017": "chosen equals rejected",
    "BC018": "the prompts of a preference pair differ",
    "BC019": "a malformed tool call",
    "BC020": "a lone surrogate or NUL in a text",
    "BC021": "a data path or glob matches nothing",
    "BC022": "the tokenizer has no chat template",
    "BC023": "the chat template raised",
    "BC024": "the chat template does not preserve prefixes",
    "BC025": "the end of turn is not trained",
    "BC026": "no pad token; the choice made for generation",
    "BC027": "a token id is outside the embedding",
    "BC028": "rows that do not fit max_length",
    "BC029": "a model lacks a weight file",
    "BC030": "missing or unexpected weights",
    "BC031": "adapter targets match nothing",
    "BC032": "adapter targets match in part",
    "BC033": "an adapter made for another base model",
    "BC034": "an unknown config key",
    "BC035": "a duplicate YAML key",
    "BC037": "YAML read a string as something else",
    "BC038": "a config value has the wrong type or range",
    "BC039": "config values conflict",
    "BC040": "a DeepSpeed file's batch sizes are not the run's",
    "BC041": "the device lacks the dtype",
    "BC042": "the output directory cannot be written",
    "BC043": "the output directory belongs to another run",
    "BC044": "another process holds the output directory",
    "BC045": "the disk is too small",
    "BC046": "a checkpoint is torn or corrupt",
    "BC047": "a checkpoint of another model",
    "BC048": "a checkpoint of another number of processes or batch size",
    "BC049": "a checkpoint of another ZeRO stage",
    "BC050": "the data, evaluation data or tokenizer changed since the checkpoint",
    "BC051": "a checkpoint of a newer version",
    "BC053": "two plugins share a name",
    "BC054": "a plugin failed to import",
    "BC055": "a plugin returned a wrong record",
    "BC056": "a plugin is not installed",
    "BC057": "the loss is not finite",
    "BC058": "a misspelt hook",
    "BC059": "a plugin for another hook API version",
    "BC060": "a plugin raised, or built or returned what its contract forbids",
    "BC061": "an input file is missing or unreadable",
    "BC062": "a data format cannot be told",
    "BC063": "data of a kind that the stage does not read",
    "BC064": "a model cannot be loaded",
    "BC065": "a model is not causal, or its attention cannot compute it exactly",
    "BC066": "rows were dropped or truncated",
    "BC067": "a distributed launch is wrong",
    "BC068": "a config file is not valid YAML",
    "BC069": "a file would be overwritten",
    "BC070": "plugins or libraries changed since the checkpoint",
    "BC071": "a plugin needs a package that is not installed",
    "BC083": "a key of a row or message is not read",
    "BC084": "a row holds images, audio or video",
    "BC088": "ranks differ in configuration, data, model or versions",
    "BC089": "output_dir is not shared between the machines of a run",
    "BC091": "a row is larger than data.max_row_bytes",
    "BC092": "a chat template or regular expression exceeds its time or memory limit",
    "BC072": "weights to save are not finite",
    "BC075": "damaged cache files were rebuilt",
    "BC076": "a data file changed while it was read",
    "BC077": "the metric history of a run is damaged",
    "BC078": "a worker process died",
    "BC079": "the chat template does not render a part of a trained turn",
    "BC080": "the chat template does not render a part of the context",
    "BC081": "a learning rate is not finite or is negative",
    "BC082": "a loss is a mean where a sum is wanted, or its count does not add up",
    "BC086": "special tokens in a text",
    "BC087": "a reply ends with the end-of-turn token",
    "BC085": "the data has token weights that the loss does not accept",
    "BC094": "an installed library has a version that is not supported",
    "BC095": "a compressed data file is damaged or cut short",
    "BC096": "all feedback rows have the same label",
    "BC097": "more rows are bad than data.max_bad_share",
    "BC098": "documents cannot share prefixes with this model at these lengths",
    "BC100": "the auxiliary loss of the routers is not available",
    "BC101": "the embeddings of this model cannot be resized",
    "BC102": "a text in model.add_tokens cannot be a token",
    "BC103": "an adapter cannot be trained exactly on this model",
}
