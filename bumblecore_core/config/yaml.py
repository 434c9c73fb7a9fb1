"""Safe YAML with a place for every key.

The text is composed to PyYAML's nodes, which know their lines, and built into plain data here, so that duplicate keys
are refused, no tag can create an object, and later errors can say `file:line`. Scalars follow YAML 1.1 as PyYAML does,
with three differences: `1e-5` is a number (YAML 1.1 wants a dot), dates and `1:30` stay text, keys are always text.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bumblecore_core.config.keys import KeyPath, dotted, shown
from bumblecore_core.config.scalars import READERS, TAG, PlainDumper, PlainLoader
from bumblecore_core.errors import ConfigError, Problem, one, printable
from bumblecore_core.toolkit.regular_files import require_regular

DEEPEST = 64
MOST_NODES = 20_000  # PyYAML takes up to 0.1 ms for each, and aliases can repeat a node exponentially often
LARGEST_BYTES = 512 << 10


@dataclass(frozen=True)
class Mark:
    """A place in a text; lines and columns count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """A parsed YAML document.

    `data`: dicts, lists, str, int, float, bool, None. `marks`: where each key and each list item is written.
    `spelled`: unquoted scalars that YAML did not read as text, as they were written (`off`, `010`, `1e-5`).
    """

    data: Any
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    spelled: dict[KeyPath, str] = field(default_factory=dict)


def read_text(path: Path) -> str:
    """The text of a config file; a byte order mark is accepted.

    Raises `ConfigError`: BC061 (missing, unreadable, not a regular file), BC003 (not UTF-8), BC068 (too large).
    """
    require_regular(path, ConfigError)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise one(
            ConfigError, "BC061", _why_unreadable(path, error), _nearest_file(path), place=printable(str(path))
        ) from None
    if len(raw) > LARGEST_BYTES:
        problem = f"the config file has more than {LARGEST_BYTES:,} bytes"
        fix = "Is it another file? A long list of data files can be written as a glob"
        raise one(ConfigError, "BC068", problem, fix, place=printable(str(path)))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"the file is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}"
        raise one(ConfigError, "BC003", problem, "Save it as UTF-8", place=printable(str(path))) from None


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such config file"
    return f"the config file cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})"


def _nearest_file(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml"))
    except (OSError, ValueError):
        return "Give the path of a YAML file; `bumble config init` writes one"
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return (
        f"Did you mean '{shown(close[0])}'?"
        if close
        else "Give the path of a YAML file; `bumble config init` writes one"
    )


def parse(text: str, *, place: Callable[[Mark], str]) -> Document:
    """The document in `text`. `place` spells a mark for messages.

    Raises `ConfigError`: BC035 for each duplicate key, BC068 for text that is not (safe) YAML, BC020 for a NUL or lone
    surrogate in a text, BC038 for a number that is not finite.
    """
    node = _compose(text, place)
    if node is None:
        return Document(data=None)
    builder = _Builder(place)
    data = builder.value(node, ())
    if builder.problems:
        raise ConfigError(builder.problems)
    return Document(data=data, marks=builder.marks, spelled=builder.spelled)


def dump(data: Any) -> str:
    """Plain data as YAML that `parse` reads back as the same data; keys keep their order."""
    text: str = yaml.dump(data, Dumper=PlainDumper, sort_keys=False, width=1000)
    return text


def _compose(text: str, place: Callable[[Mark], str]) -> yaml.Node | None:
    try:
        loader = _BoundedLoader(text)
        node: yaml.Node | None = loader.get_single_node()
        return node
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        mark = Mark(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        problem = f"a character that YAML does not allow (U+{ord(text[error.position]):04X})"
        fix = "Remove it, or write it as an escape in double quotes"
    except _TooManyNodes as error:
        mark = Mark(error.args[0].line + 1, error.args[0].column + 1)
        problem, fix = f"more than {MOST_NODES:,} values", "Is it another file? A long list of data files can be a glob"
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(at.line + 1, at.column + 1) if at else Mark(1, 1)
        problem = "not valid YAML: " + ", ".join(shown(part) for part in (error.context, error.problem) if part)
        tab = "\\t" in (error.problem or "")
        fix = "Indent with spaces, not tabs" if tab else "Correct the YAML here or just before"
    except RecursionError:
        mark, problem, fix = Mark(1, 1), "the YAML is nested too deeply", f"Use at most {DEEPEST} levels"
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # an escape beyond Unicode is a ValueError in PyYAML
        mark, problem, fix = Mark(1, 1), f"not valid YAML: {shown(str(error))}", "Correct the YAML"
    where = place(mark)
    where = f"{where}:{mark.column}" if where.endswith(f":{mark.line}") else where
    raise one(ConfigError, "BC068", problem, fix, place=where) from None


class _TooManyNodes(Exception):
    """More than `MOST_NODES`; its argument is a node's PyYAML mark."""


class _BoundedLoader(PlainLoader):
    """Stops while the text is composed: what comes after would take as long again for each node."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise _TooManyNodes(self.get_mark())  # where the scanner is, which is at or just behind this node
        return super().compose_node(parent, index)


class _Builder:
    """Builds plain data from nodes and notes marks, spellings and problems on the way."""

    def __init__(self, place: Callable[[Mark], str]) -> None:
        self.place = place
        self.marks: dict[KeyPath, Mark] = {}
        self.spelled: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """What `node` holds. Raises `ConfigError` for a document too deep or too large; notes all other problems."""
        self.nodes += 1
        if len(path) > DEEPEST or self.nodes > MOST_NODES:
            problem = f"more than {DEEPEST} levels or {MOST_NODES:,} values (does an alias contain itself?)"
            raise one(ConfigError, "BC068", problem, "Write the values out", place=self.place(_mark(node)))
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            places = [(*path, index) for index in range(len(node.value))]
            self.marks.update(zip(places, map(_mark, node.value), strict=True))
            return [self.value(item, place) for item, place in zip(node.value, places, strict=True)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        return self._wrong(node, path, "BC068", f"the tag {shown(node.tag)} is not allowed", "Remove the tag")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in self._own_pairs(node, path) + self._merged_pairs(node, path, 0):
            key = self._text(key_node, path)
            if key not in built:
                place = (*path, key)
                self.marks[place] = _mark(key_node)
                built[key] = self.value(value_node, place)
        return built

    def _own_pairs(self, node: yaml.MappingNode, path: KeyPath) -> list[tuple[yaml.Node, yaml.Node]]:
        """The key and value nodes written in this mapping itself; notes keys that are no text and duplicates."""
        first: dict[str, Mark] = {}
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, value_node in node.value:
            if key_node.tag == TAG + "merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong(key_node, path, "BC068", "a key is not text", "Write a name before the colon")
                continue
            key, mark = key_node.value, _mark(key_node)
            if key in first:
                lines = (
                    f"on lines {first[key].line} and {mark.line}"
                    if first[key].line != mark.line
                    else f"on line {mark.line}"
                )
                problem = f"the key is written twice, {lines}"
                self._wrong(key_node, (*path, key), "BC035", problem, "Keep one of the two")
                continue
            first[key] = mark
            pairs.append((key_node, value_node))
        return pairs

    def _merged_pairs(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> list[tuple[yaml.Node, yaml.Node]]:
        """What `<<: *anchor` or `<<: [*a, *b]` brings in, nearest first; keys written in the mapping itself win."""
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, value_node in node.value:
            if key_node.tag != TAG + "merge":
                continue
            sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for source in sources:
                self.nodes += 1
                if not isinstance(source, yaml.MappingNode) or depth > DEEPEST or self.nodes > MOST_NODES:
                    self._wrong(value_node, path, "BC068", "`<<` does not name a mapping", "Write `<<: *anchor`")
                    return []
                own = [pair for pair in source.value if isinstance(pair[0], yaml.ScalarNode)]
                pairs += [pair for pair in own if pair[0].tag != TAG + "merge"]
                pairs += self._merged_pairs(source, path, depth + 1)
        return pairs

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix(TAG)
        if kind in ("str", "merge"):
            return self._text(node, path)
        try:
            value = READERS[kind](node.value)
        except (KeyError, ValueError):
            problem = f"{shown(repr(node.value))} cannot be read as {shown(node.tag)}"
            return self._wrong(node, path, "BC068", problem, "Remove the tag, or correct the value")
        if isinstance(value, float) and not math.isfinite(value):
            return self._wrong(
                node, path, "BC038", f"expected a finite number, got {shown(node.value)}", "Write a number"
            )
        if node.style is None and value is not None:
            self.spelled[path] = node.value
        return value

    def _text(self, node: yaml.Node, path: KeyPath) -> str:
        """The text of a scalar; surrogate pairs, as JSON writes them, become their character."""
        text = str(node.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            try:
                text = text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                self._wrong(node, path, "BC020", "the text holds a lone surrogate", "Remove it")
                return ""
        if "\0" in text:
            self._wrong(node, path, "BC020", "the text holds a NUL character", "Remove it")
        return text

    def _wrong(self, node: yaml.Node, path: KeyPath, code: str, problem: str, fix: str) -> None:
        place = self.place(_mark(node))
        self.problems.append(Problem(code=code, problem=problem, fix=fix, place=place, field=dotted(path)))


def _mark(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)
