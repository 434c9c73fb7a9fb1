"""Which tokens of a conversation are trained: spans by position, never by token id.

Two ways to find them, both on one tokenization of the whole conversation:

- the chat template marks them with `{% generation %}`; or
- verified prefixes: for an assistant's turn after the messages before it, P is the rendering of those messages with the
  generation prompt and F the rendering up to and including the turn. Both must be prefixes of the whole rendering; then
  the turn's characters are `[len(P), len(F))`. A template that rewrites history fails the check and is refused.

See docs/sft-masking.md for the reasoning.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from bumblecore_core.errors import RowError
from bumblecore_core.toolkit.limits import limited
from bumblecore_core.toolkit.templates import ChatTemplate
from bumblecore_core.toolkit.tokenizers import exact_encoder, special_tokens
from bumblecore_core.values import ChatSample, Dropped, Message

TrainOn: TypeAlias = Literal["all", "last"]
MOST_TURNS = 2048
END_OF_TURN_WARNING = "BC025 the end of a turn is not trained: the template closes it without a special token"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChat:
    """A conversation in tokens. `input_ids`: (n,) int32; `spans`: trained tokens as [start, end), ascending."""

    input_ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...] = ()


class _Turn(NamedTuple):
    """Trained characters [start, end) of the whole rendering; `field`: the row's path of the assistant message."""

    start: int
    end: int
    field: str


class _Rendered(NamedTuple):
    text: str
    turns: tuple[_Turn, ...]


class _Tokens(NamedTuple):
    """Ids, and each token's characters [start, end) in the text."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


class ChatEncoder:
    """Encodes conversations with one tokenizer and its chat template. Holds no open resources; pickles.

    `train_on`: every assistant turn, or the last alone (then only that one needs to verify). Raises `ModelError` BC022
    (no chat template) or BC024 (its generation marks cannot be located).
    """

    def __init__(self, tokenizer: Any, *, train_on: TrainOn = "all", strict: bool = False) -> None:
        self.train_on = train_on
        self.strict = strict
        self._template = ChatTemplate(tokenizer)
        self._encoder = exact_encoder(tokenizer)
        self._specials = tuple(special_tokens(tokenizer))
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._tails: dict[str, list[int]] = {}

    def __call__(
        self, samples: Sequence[ChatSample], first: Sequence[int] | None = None
    ) -> list[EncodedChat | Dropped | RowError]:
        """One entry per sample: tokens and spans, or why there are none (BC015, 020, 023, 024, 066, 091). `first`: for
        each sample the index of the message from which on assistant turns are trained."""
        begin = [0] * len(samples) if first is None else first
        with limited():
            rendered = [self._render(sample, at) for sample, at in zip(samples, begin, strict=True)]
        encoded = iter(self._encode([entry.text for entry in rendered if isinstance(entry, _Rendered)]))
        return [self._align(entry, next(encoded)) if isinstance(entry, _Rendered) else entry for entry in rendered]

    # Characters

    def _render(self, sample: ChatSample, first: int) -> _Rendered | Dropped | RowError:
        messages = [{key: value for key, value in message.items() if value is not None} for message in sample.messages]
        tools = list(sample.tools) if sample.tools else None
        runs = [run for run in _assistant_runs(messages) if run.start >= first]
        if self.train_on == "last":
            runs = runs[-1:]
        if not runs:
            return Dropped(code="BC066", reason="no supervised token")
        for index in (index for run in runs for index in run):
            if _is_empty(messages[index]):
                return self._empty(index)
        try:
            if self._template.has_marks(tools):
                return self._marked(messages, tools, runs)
            return self._by_prefixes(messages, tools, runs)
        except RowError as error:
            return error

    def _empty(self, index: int) -> Dropped | RowError:
        if not self.strict:
            return Dropped(code="BC015", reason="an assistant reply is empty")
        field = f"messages[{index}].content"
        return RowError(code="BC015", field=field, problem="the assistant's reply is empty", fix="fill or remove it")

    def _marked(self, messages: list[Message], tools: Any, runs: list[range]) -> _Rendered:
        text, spans = self._template.render_marks(messages, tools)
        if any("role" in m and m["role"] == "assistant" for m in messages[: runs[0].start]):
            spans = spans[len(self._template.render_marks(messages[: runs[0].start], tools)[1]) :]
        replies = [f"messages[{index}]" for run in runs for index in run]
        fields = replies if len(replies) == len(spans) else ["messages"] * len(spans)
        turns = (_Turn(start, end, field) for (start, end), field in zip(spans, fields, strict=True) if end > start)
        return _Rendered(text, tuple(turns))

    def _by_prefixes(self, messages: list[Message], tools: Any, runs: list[range]) -> _Rendered:
        if len(runs) > MOST_TURNS:
            problem = f"more than {MOST_TURNS:,} assistant turns, of which each is verified by rendering all before it"
            raise RowError(code="BC091", field="messages", problem=problem, fix="split it, or set stage.train_on: last")
        text = self._template.render(messages, tools)

        def turn(first: int, stop: int) -> _Turn:
            field = f"messages[{first}]"
            prompt = self._template.render(messages[:first], tools, prompt=True)
            if not text.startswith(prompt):
                raise self._refusal(prompt, text, field, "what comes before this turn")
            upto = text if stop == len(messages) else self._template.render(messages[:stop], tools)
            if not text.startswith(upto):
                upto = self._without_conversation_end(upto)
            if not (text.startswith(upto) and len(upto) >= len(prompt)):
                raise self._refusal(upto, text, field, "this turn")
            said = upto[len(prompt) :].rstrip()  # white space after the closing special token is not the model's to say
            return _Turn(len(prompt), len(prompt) + len(said) if said.endswith(self._specials) else len(upto), field)

        turns: list[_Turn] = []
        for run in runs:
            try:  # message by message first, so that a header between two assistant messages is not trained
                turns += [turn(index, index + 1) for index in run]
            except RowError:
                if len(run) == 1:
                    raise
                turns.append(turn(run.start, run.stop))
        return _Rendered(text, tuple(turns))

    def _without_conversation_end(self, text: str) -> str:
        """`text` without a last special token after another one: some templates close the whole conversation so."""
        closing = max((token for token in self._specials if text.rstrip().endswith(token)), key=len, default="")
        shorter = text.rstrip().removesuffix(closing)
        return shorter if shorter.rstrip().endswith(self._specials) else text

    # Tokens

    def _encode(self, texts: list[str]) -> list[_Tokens | RowError]:
        try:
            encodings = self._encoder.encode_batch(texts, add_special_tokens=False)
        except TypeError:  # not valid Unicode somewhere: find the rows
            if len(texts) > 1:
                return [entry for text in texts for entry in self._encode([text])]
            return [RowError(code="BC020", field="messages", problem="a lone surrogate in a text", fix="remove it")]
        return [
            _Tokens(encoding.ids, [s for s, _ in offsets], [e for _, e in offsets])
            for encoding in encodings
            for offsets in (encoding.offsets,)
        ]

    def _align(self, rendered: _Rendered, tokens: _Tokens | RowError) -> EncodedChat | Dropped | RowError:
        if isinstance(tokens, RowError):
            return tokens
        text, turns = rendered
        spans = [self._span(tokens, text, turn) for turn in turns]
        if None in spans:
            whole, tokens = tokens, self._encode_in_parts(text, turns)
            spans = [self._span(tokens, text, turn) for turn in turns]
            if None in spans or self._decode(tokens) != self._decode(whole):
                return self._straddled(whole, text, turns)
        trained = tuple(span for span in spans if span is not None and span[1] > span[0])
        if not any(end > max(start, 1) for start, end in trained):
            return Dropped(code="BC066", reason="no supervised token")
        closed = all(text[turn.start : turn.end].rstrip().endswith(self._specials) for turn in turns)
        return EncodedChat(
            input_ids=np.asarray(tokens.ids, dtype=np.int32),
            spans=trained,
            warnings=() if closed else (END_OF_TURN_WARNING,),
        )

    def _span(self, tokens: _Tokens, text: str, turn: _Turn) -> tuple[int, int] | None:
        """The turn's tokens, or None where a token reaches across one of its ends or its prompt would tokenize
        otherwise on its own (as it does when the model is asked)."""
        start, end = self._boundary(tokens, text, turn.start), self._boundary(tokens, text, turn.end)
        if start is None or end is None or not self._prompt_stands(tokens, text, turn.start):
            return None
        return start, end

    def _boundary(self, tokens: _Tokens, text: str, edge: int) -> int | None:
        """Index of the first token at or after character `edge`; None where a token reaches across it."""
        index = bisect_left(tokens.starts, edge)
        if index == 0 or tokens.ends[index - 1] <= edge:
            return index
        if tokens.ids[index - 1] in self._added:  # such tokens may take in the white space around them
            if not text[edge : tokens.ends[index - 1]].strip():
                return index
            if not text[tokens.starts[index - 1] : edge].strip():
                return index - 1
        return None

    def _prompt_stands(self, tokens: _Tokens, text: str, edge: int) -> bool:
        """Whether white space at the end of the prompt is cut into the same tokens when no reply follows it.

        Pre-tokenizers look ahead there: in `\\n\\nHi` the usual patterns split the newlines, alone they join them.
        """
        space = len(text[:edge].rstrip())
        if edge - space < 2:
            return True
        first = bisect_left(tokens.starts, space)
        origin = tokens.starts[max(0, first - 4)]  # some context, from a token's start
        tail = text[origin:edge]
        if tail not in self._tails:
            if len(self._tails) > 4096:
                self._tails.clear()
            self._tails[tail] = [start for start, _ in self._encoder.encode(tail, add_special_tokens=False).offsets]
        alone = [origin + start for start in self._tails[tail] if origin + start >= space]
        return alone == tokens.starts[first : bisect_left(tokens.starts, edge)]

    def _encode_in_parts(self, text: str, turns: Sequence[_Turn]) -> _Tokens:
        """The text tokenized between the turns' ends, which is what a model sees: a prompt, then its own tokens."""
        cuts = sorted({0, len(text), *(edge for turn in turns for edge in (turn.start, turn.end))})
        parts = [text[start:end] for start, end in pairwise(cuts)]
        joined = _Tokens([], [], [])
        for origin, encoding in zip(cuts, self._encoder.encode_batch(parts, add_special_tokens=False), strict=False):
            joined.ids.extend(encoding.ids)
            joined.starts.extend(origin + start for start, _ in encoding.offsets)
            joined.ends.extend(origin + end for _, end in encoding.offsets)
        return joined

    def _decode(self, tokens: _Tokens) -> str:
        return str(self._encoder.decode(tokens.ids, skip_special_tokens=False))

    # Refusals

    def _straddled(self, tokens: _Tokens, text: str, turns: Sequence[_Turn]) -> RowError:
        turn = next(turn for turn in turns if self._span(tokens, text, turn) is None)
        start = self._boundary(tokens, text, turn.start)
        at_start = start is None or not self._prompt_stands(tokens, text, turn.start)
        what = "the tokens before this turn" if at_start else "the tokens of this turn"
        return self._refusal(text[: turn.start if at_start else turn.end], text, turn.field, what)

    def _refusal(self, part: str, whole: str, field: str, what: str) -> RowError:
        ids = [self._encoder.encode(text, add_special_tokens=False).ids for text in (part, whole)]
        at = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
        alone, within = (self._name(tokens[at]) if at < len(tokens) else "the end" for tokens in ids)
        ways = ["mark the assistant's parts of the template with {% generation %}", "set another model.chat_template"]
        if self.train_on == "all":
            ways.insert(0, "set stage.train_on: last")
        return RowError(
            code="BC024",
            field=field,
            problem=f"the chat template does not preserve {what}: token {at} is {alone} when rendered up to here, but "
            f"{within} in the whole conversation",
            fix=", or ".join(ways),
        )

    def _name(self, token: int) -> str:
        """A token in a message: its id, and its text only where that is no part of the row."""
        return f"{token} ({self._encoder.id_to_token(token)})" if token in self._added else str(token)


def encode_chats(
    tokenizer: Any, samples: Sequence[ChatSample], *, train_on: TrainOn = "all", strict: bool = False
) -> list[EncodedChat | Dropped | RowError]:
    """`ChatEncoder` for a single call; keep the encoder where there are many, for it copies the tokenizer."""
    return ChatEncoder(tokenizer, train_on=train_on, strict=strict)(samples)


def _assistant_runs(messages: Sequence[Message]) -> Iterator[range]:
    """Index ranges of consecutive assistant messages."""
    first = None
    for index, message in enumerate([*messages, {}]):
        is_assistant = message.get("role") == "assistant"
        if is_assistant and first is None:
            first = index
        elif not is_assistant and first is not None:
            yield range(first, index)
            first = None


def _is_empty(message: Message) -> bool:
    content = message.get("content")
    said = content.strip() if isinstance(content, str) else content
    return not said and not message.get("tool_calls")
