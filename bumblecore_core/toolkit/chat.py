"""Conversations in tokens: which are trained, as spans by position, never by token id.

`chat_text` says which characters are trained; here they become tokens, of one tokenization of the whole text wherever
that gives the tokens that a model is served with. See docs/sft-masking.md for the reasoning.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bumblecore_core.errors import RowError
from bumblecore_core.toolkit.causal import Context
from bumblecore_core.toolkit.chat_text import NOTHING_TRAINED, ChatText, Reasoning, Rendered, Span, TrainOn
from bumblecore_core.toolkit.limits import limited
from bumblecore_core.toolkit.special_texts import SpecialTexts, SpecialTokens
from bumblecore_core.toolkit.templates import ChatTemplate
from bumblecore_core.toolkit.tokenizers import exact_encoder, special_tokens, text_encoder
from bumblecore_core.values import ChatSample, Dropped

NESTED = RowError(code="BC011", field="messages", problem="nested too deeply", fix="leave the row out")
END_OF_TURN_WARNING = "BC025 the end of a turn is not trained: the template closes it without a special token"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChat:
    """A text in tokens. `input_ids`: (n,) int32; `spans`: trained tokens as [start, end), ascending; `weights`: one for
    each span, or empty where all are 1."""

    input_ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()


class _Tokens(NamedTuple):
    """Ids, and each token's characters [start, end) in the text."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


class ChatEncoder:
    """Encodes conversations with one tokenizer and its chat template. Holds no open resources; pickles.

    `train_on`: every assistant turn, or only the last one; `reasoning`: train it, or `drop` it from all messages;
    `template_kwargs`, `date`: see `ChatTemplate`; `special_tokens_as`: see `SpecialTexts`; with `strict`, `control` is
    `refuse`. Raises `ModelError` BC022 (no chat template) or BC024 (its generation marks cannot be located).
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        train_on: TrainOn = "all",
        reasoning: Reasoning = "keep",
        strict: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        date: str | None = None,
        special_tokens_as: SpecialTokens = "control",
    ) -> None:
        specials = special_tokens(tokenizer)
        self.train_on = train_on
        self._specials = tuple(specials)
        template = ChatTemplate(tokenizer, variables=template_kwargs, date=date)
        self._text = ChatText(
            template,
            specials=self._specials,
            eos=tokenizer.eos_token or "",
            train_on=train_on,
            reasoning=reasoning,
            strict=strict,
        )
        ends = [text for text, token in specials.items() if token in template.end_of_turn_ids()]
        mode = "refuse" if strict and special_tokens_as == "control" else special_tokens_as
        self._special_texts = SpecialTexts(self._specials, ends, mode)
        self._encoder = exact_encoder(tokenizer)
        self._plain = text_encoder(tokenizer) if special_tokens_as == "text" else None
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._tails: dict[str, list[int]] = {}

    def __call__(
        self, samples: Sequence[ChatSample], first: Sequence[int] | None = None
    ) -> list[EncodedChat | Dropped | RowError]:
        """One entry per sample: tokens and spans, or why there are none (BC015, 020, 023, 024, 066, 079, 086, 091).
        `first`: for each sample the index of the message from which on assistant turns are trained. A conversation of
        which each turn would be a text of its own is refused (BC024)."""
        begin = [0] * len(samples) if first is None else first
        return [
            entry if isinstance(entry, Dropped | RowError) else entry[0]
            for entry in self._encoded(samples, begin, split=False)
        ]

    def turns(self, samples: Sequence[ChatSample]) -> list[list[EncodedChat] | Dropped | RowError]:
        """The same, but where the template rewrites history each trained turn is a text of its own, in order."""
        return self._encoded(samples, [0] * len(samples), split=True)

    def _encoded(
        self, samples: Sequence[ChatSample], first: Sequence[int], *, split: bool
    ) -> list[list[EncodedChat] | Dropped | RowError]:
        rendered: list[tuple[list[Rendered] | Dropped | RowError, tuple[str, ...]]] = []
        with limited():
            for sample, begin in zip(samples, first, strict=True):
                try:
                    plain = self._special_texts(sample)
                    if isinstance(plain, RowError):
                        rendered.append((plain, ()))
                        continue
                    texts = self._text(plain, begin, split=split, refuse=self._refusal)
                    rendered.append((texts, tuple(set(plain.warnings) - set(sample.warnings))))
                except RecursionError:
                    rendered.append((NESTED, ()))
        tokens = iter(self._encode([text.text for texts, _ in rendered if isinstance(texts, list) for text in texts]))
        return [
            _joined([entry for text in texts for entry in self._aligned(text, next(tokens), split=split)], warnings)
            if isinstance(texts, list)
            else texts
            for texts, warnings in rendered
        ]

    def _encode(self, texts: list[str]) -> list[_Tokens | RowError]:
        try:
            encodings = self._encoder.encode_batch(texts, add_special_tokens=False)
        except TypeError:  # not valid Unicode somewhere: find the rows
            if len(texts) > 1:
                return [entry for text in texts for entry in self._encode([text])]
            return [RowError(code="BC020", field="messages", problem="a lone surrogate in a text", fix="remove it")]
        return [
            _Tokens(encoding.ids, [s for s, _ in offsets], [e for _, e in offsets])
            if len(pieces := self._special_texts.pieces(text)) == 1
            else self._encode_pieces(pieces)
            for text, encoding in zip(texts, encodings, strict=True)
            for offsets in (encoding.offsets,)
        ]

    def _encode_pieces(self, pieces: Sequence[tuple[str, int]]) -> _Tokens:
        """A text with special tokens' texts to be read as plain text, each as one token reaches over its place."""
        joined, origin = _Tokens([], [], []), 0
        for piece, width in pieces:
            encoder = self._plain if width and self._plain is not None else self._encoder
            encoding = encoder.encode(piece, add_special_tokens=False)
            joined.ids.extend(encoding.ids)
            joined.starts.extend(origin if width else origin + start for start, _ in encoding.offsets)
            joined.ends.extend(origin + (width or end) for _, end in encoding.offsets)
            origin += width or len(piece)
        return joined

    def _aligned(
        self, rendered: Rendered, tokens: _Tokens | RowError, *, split: bool
    ) -> list[EncodedChat | Dropped | RowError]:
        """The text in tokens; with `split` a text of its own for each turn where a later prompt, tokenized at once as
        it is when served, has other tokens than the replies in it."""
        text, turns, warnings = rendered
        whole = isinstance(tokens, RowError) or all(self._span(tokens, text, turn) for turn in turns)
        if whole or not split or len(turns) == 1:
            return [self._align(rendered, tokens)]
        parts = [Rendered(text[: turn.end], (turn,), warnings if turn is turns[-1] else ()) for turn in turns]
        encoded = self._encode([part.text for part in parts])
        return [self._align(part, own) for part, own in zip(parts, encoded, strict=True)]

    def _align(self, rendered: Rendered, tokens: _Tokens | RowError) -> EncodedChat | Dropped | RowError:
        if isinstance(tokens, RowError):
            return tokens
        text, turns, warnings = rendered
        spans = [self._span(tokens, text, turn) for turn in turns]
        if None in spans:
            whole, tokens = tokens, self._encode_in_parts(text, turns)
            spans = [self._span(tokens, text, turn) for turn in turns]
            if None in spans or self._decode(tokens) != self._decode(whole):
                return self._straddled(whole, text, turns)
        kept = [(*span, turn.weight) for span, turn in zip(spans, turns, strict=True) if span and span[1] > span[0]]
        if not any(end > max(start, 1) for start, end, _ in kept):
            return NOTHING_TRAINED
        closed = all(text[turn.start : turn.end].rstrip().endswith(self._specials) for turn in turns)
        weights = tuple(weight for _, _, weight in kept)
        return EncodedChat(
            input_ids=np.asarray(tokens.ids, dtype=np.int32),
            spans=tuple((start, end) for start, end, _ in kept),
            weights=() if all(weight == 1.0 for weight in weights) else weights,
            warnings=warnings if closed else (*warnings, END_OF_TURN_WARNING),
        )

    def _span(self, tokens: _Tokens, text: str, turn: Span) -> tuple[int, int] | None:
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

    def _encode_in_parts(self, text: str, turns: Sequence[Span]) -> _Tokens:
        """The text tokenized between the turns' ends, which is what a model sees: a prompt, then its own tokens."""
        cuts = sorted({0, len(text), *(edge for turn in turns for edge in (turn.start, turn.end))})
        parts = [text[start:end] for start, end in pairwise(cuts)]
        return self._encode_pieces([piece for part in parts for piece in self._special_texts.pieces(part)])

    def _decode(self, tokens: _Tokens) -> str:
        return str(self._encoder.decode(tokens.ids, skip_special_tokens=False))

    # Refusals

    def _straddled(self, tokens: _Tokens, text: str, turns: Sequence[Span]) -> RowError:
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


def _joined(
    entries: Sequence[EncodedChat | Dropped | RowError], warnings: tuple[str, ...]
) -> list[EncodedChat] | Dropped | RowError:
    """The texts of one conversation, the first with its warnings; or the first thing that is wrong with them."""
    encoded = [entry for entry in entries if isinstance(entry, EncodedChat)]
    if len(encoded) < len(entries):
        return next(entry for entry in entries if not isinstance(entry, EncodedChat))
    encoded[0] = replace(encoded[0], warnings=(*warnings, *encoded[0].warnings))
    return encoded


def chat_encoder(context: Context, *, train_on: TrainOn = "all", reasoning: Reasoning = "keep") -> ChatEncoder:
    """The encoder of a stage."""
    return ChatEncoder(
        context.tokenizer,
        train_on=train_on,
        reasoning=reasoning,
        strict=context.strict,
        template_kwargs=context.template_kwargs,
        date=context.template_date,
        special_tokens_as=context.special_tokens,
    )


def encode_chats(
    tokenizer: Any, samples: Sequence[ChatSample], *, train_on: TrainOn = "all", strict: bool = False
) -> list[EncodedChat | Dropped | RowError]:
    """`ChatEncoder` for a single call; for many keep the encoder, which copies the tokenizer."""
    return ChatEncoder(tokenizer, train_on=train_on, strict=strict)(samples)
