"""Which characters of a conversation are trained, before any token is made.

Either the chat template marks them with `{% generation %}`, or they are found turn by turn as the model is served: what
the template renders for the messages before the turn, with the generation prompt, is the untrained prompt; what it
renders beyond that for the messages up to the turn is the reply.

Where every turn's prompt and reply are a prefix of the whole rendering, the conversation is one text. Where a template
rewrites history (drops earlier reasoning, ends the last turn otherwise), each trained turn is a text of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from bumblecore_core.errors import RowError
from bumblecore_core.toolkit.lost_parts import context_warnings, require_whole
from bumblecore_core.toolkit.message_forms import MessageForm, find_form, in_form
from bumblecore_core.toolkit.templates import ChatTemplate
from bumblecore_core.toolkit.thinking import separated, served, with_reasoning_apart, without_empty_block
from bumblecore_core.values import ChatSample, Dropped, Message

TrainOn: TypeAlias = Literal["all", "last"]
Reasoning: TypeAlias = Literal["keep", "drop"]
MOST_TURNS = 2048
NOTHING_TRAINED = Dropped(code="BC066", reason="no supervised token")
Refuse: TypeAlias = Callable[[str, str, str, str], RowError]
"""(rendered part, whole rendering, field, what is not preserved) to the row's error."""


class Span(NamedTuple):
    """Trained characters [start, end) of a text; `field`: the row's path of the assistant message; `weight`: of it."""

    start: int
    end: int
    field: str
    weight: float = 1.0


class Rendered(NamedTuple):
    """A text to train on. `warnings`: what was lost of its context."""

    text: str
    spans: tuple[Span, ...]
    warnings: tuple[str, ...] = ()


class _Turn(NamedTuple):
    """Messages [first, stop) of an assistant, as they are served."""

    prompt: str
    reply: str
    first: int
    stop: int
    weight: float

    @property
    def field(self) -> str:
        return f"messages[{self.first}]"


class _Conversation(NamedTuple):
    """`messages`: with reasoning under `reasoning_content` or, where the template reads none, as the row has them;
    `formed`: the same as the template reads them; `texts`: what was rendered of them, by (messages, prompt)."""

    messages: list[Message]
    formed: list[Message]
    form: MessageForm
    weights: list[float]
    tools: list[dict[str, Any]] | None
    variables: Mapping[str, Any]
    texts: dict[tuple[int, bool], str]

    @property
    def last_reply(self) -> int:
        """Index of the last assistant message."""
        return max(at for at, message in enumerate(self.messages) if message.get("role") == "assistant")


class ChatText:
    """Renders conversations with one chat template. `specials`, `eos`: texts of the special tokens, and of EOS."""

    def __init__(
        self,
        template: ChatTemplate,
        *,
        specials: Sequence[str],
        eos: str,
        train_on: TrainOn,
        reasoning: Reasoning,
        strict: bool,
    ) -> None:
        self.template = template
        self.train_on, self._drops, self.strict = train_on, reasoning == "drop", strict
        self._specials, self._eos = tuple(specials), eos
        self._rest = re.compile(rf"(?:\s|{'|'.join(map(re.escape, self._specials)) or '(?!)'})*")
        self._forms: dict[str, MessageForm] = {}

    def __call__(
        self, sample: ChatSample, first: int, *, split: bool, refuse: Refuse
    ) -> list[Rendered] | Dropped | RowError:
        """The texts of a conversation: one, or with `split` one per trained turn where the template rewrites history.
        `first`: index of the message from which on assistant turns are trained."""
        try:
            return self._texts(self._conversation(sample), first, split=split, refuse=refuse)
        except RowError as error:
            return error

    def _texts(
        self, conversation: _Conversation, first: int, *, split: bool, refuse: Refuse
    ) -> list[Rendered] | Dropped:
        runs = list(_assistant_runs(conversation, first))
        if self.train_on == "last":
            runs = [run for run in runs[-1:] if run[-1] == conversation.last_reply]
        if not runs:
            return NOTHING_TRAINED
        for index in (index for run in runs for index in run):
            if _is_empty(conversation.messages[index]):
                if not self.strict:
                    return Dropped(code="BC015", reason="an assistant reply is empty")
                field, problem = f"messages[{index}].content", "the assistant's reply is empty"
                raise RowError(code="BC015", field=field, problem=problem, fix="fill or remove it")
        if self.template.has_marks(conversation.tools):
            try:
                return [self._marked(conversation, runs, refuse)]
            except RowError as error:  # marks that say otherwise than what is served, or leave out a part
                if error.problem.code not in ("BC024", "BC079"):
                    raise
        return self._as_served(conversation, runs, split=split, refuse=refuse)

    def _conversation(self, sample: ChatSample) -> _Conversation:
        tools, variables = list(sample.tools or ()) or None, sample.template_kwargs or {}
        form = self._form(tools, variables)
        messages, weights = [], []
        for index, given in enumerate(sample.messages):
            message = {key: value for key, value in given.items() if value is not None}
            weights.append(float(message.pop("weight", 1.0)))
            if message.get("role") == "assistant":
                message = with_reasoning_apart(message, index, drop=self._drops, reads=form.reasoning is not None)
            messages.append(message)
        return _Conversation(messages, in_form(messages, form), form, weights, tools, variables, {})

    def _form(self, tools: Any, variables: Mapping[str, Any]) -> MessageForm:
        key = json.dumps([bool(tools), dict(variables)], sort_keys=True, default=str)
        if key not in self._forms:

            def render(messages: list[Message], probe_tools: Any, prompt: bool) -> str | None:
                try:
                    return self.template.render(messages, probe_tools, prompt=prompt, variables=variables)
                except RowError:
                    return None

            self._forms[key] = find_form(render)
        return self._forms[key]

    # Generation marks

    def _marked(self, conversation: _Conversation, runs: list[list[int]], refuse: Refuse) -> Rendered:
        text, marks = self.template.render_marks(conversation.formed, conversation.tools, conversation.variables)
        trained = {index for run in runs for index in run}
        assistants = [at for at, message in enumerate(conversation.messages) if message.get("role") == "assistant"]
        if len(marks) != len(assistants):
            return self._marked_otherwise(conversation, text, marks, runs, refuse)
        spans = []
        for index, (start, end) in zip(assistants, marks, strict=True):
            if index not in trained:
                continue
            asked = self._text(conversation, index, prompt=True)
            if not text.startswith(asked):
                raise refuse(asked, text, f"messages[{index}]", "what comes before this turn")
            start = max(start, len(asked))  # a mark may begin before the reply, at the header that the prompt has
            reply = self._closed(text[start:end])
            end = start + len(reply)
            if not conversation.messages[index].get("reasoning_content"):
                start += len(reply) - len(without_empty_block(reply, conversation.form.tags))
            require_whole(conversation.messages, range(index, index + 1), text[start:end])
            spans.append(Span(start, end, f"messages[{index}]", conversation.weights[index]))
        return Rendered(text, tuple(spans), context_warnings(conversation.messages, conversation.tools, text))

    def _marked_otherwise(
        self,
        conversation: _Conversation,
        text: str,
        marks: list[tuple[int, int]],
        runs: list[list[int]],
        refuse: Refuse,
    ) -> Rendered:
        """Marks that are not one per assistant message: those that lie in a trained turn's characters."""
        spans = []
        for turn in [self._turn(conversation, run, refuse) for run in runs]:
            if not text.startswith(turn.prompt):
                raise refuse(turn.prompt, text, turn.field, "what comes before this turn")
            last = len(turn.prompt) + len(turn.reply)
            inside = [(start, end) for start, end in marks if len(turn.prompt) <= start < end <= last]
            marked = "".join(text[start:end] for start, end in inside)
            require_whole(conversation.messages, range(turn.first, turn.stop), marked)
            spans += [Span(start, end, turn.field, turn.weight) for start, end in inside]
        return Rendered(text, tuple(spans), context_warnings(conversation.messages, conversation.tools, text))

    # As served

    def _as_served(
        self, conversation: _Conversation, runs: list[list[int]], *, split: bool, refuse: Refuse
    ) -> list[Rendered]:
        if len(runs) > MOST_TURNS:
            problem = f"more than {MOST_TURNS:,} assistant turns, of which each is verified by rendering all before it"
            raise RowError(code="BC091", field="messages", problem=problem, fix="split it, or set stage.train_on: last")
        turns = [turn for run in runs for turn in self._turns(conversation, run, refuse)]
        for turn in turns:
            require_whole(conversation.messages, range(turn.first, turn.stop), turn.reply)
        text = self._text(conversation, len(conversation.formed))
        spans = [self._span(turn, text) for turn in turns]
        if all(span is not None for span in spans):
            warnings = context_warnings(conversation.messages, conversation.tools, text)
            return [Rendered(text, tuple(filter(None, spans)), warnings)]
        if not split and len(turns) > 1:
            turn = turns[spans.index(None)]
            before = not text.startswith(turn.prompt)
            what = "what comes before this turn" if before else "this turn"
            raise refuse(turn.prompt if before else turn.prompt + turn.reply, text, turn.field, what)
        warnings = context_warnings(conversation.messages[: turns[-1].first], conversation.tools, turns[-1].prompt)
        return [
            Rendered(
                turn.prompt + turn.reply,
                (Span(len(turn.prompt), len(turn.prompt + turn.reply), turn.field, turn.weight),),
                warnings if turn is turns[-1] else (),
            )
            for turn in turns
        ]

    def _turns(self, conversation: _Conversation, run: list[int], refuse: Refuse) -> list[_Turn]:
        """The turns of consecutive assistant messages: message by message, so that a header between two is not trained,
        or, where the template joins them, one."""
        try:
            return [self._turn(conversation, [index], refuse) for index in run]
        except RowError:
            if len(run) == 1 or len({conversation.weights[index] for index in run}) > 1:
                raise
            return [self._turn(conversation, run, refuse)]

    def _turn(self, conversation: _Conversation, run: list[int], refuse: Refuse) -> _Turn:
        first, stop = run[0], run[-1] + 1
        asked, rendered = self._text(conversation, first, prompt=True), self._text(conversation, stop)
        message = conversation.messages[first]
        reasoning = message.get("reasoning_content") or separated(str(message.get("content", "")))[0]
        last_text = str(conversation.messages[first - 1].get("content", "")) if first else ""
        turn = served(asked, rendered, reasoning, conversation.form.tags, last_text)
        if turn is None:
            raise refuse(asked, rendered, f"messages[{first}]", "what comes before this turn")
        return _Turn(turn.prompt, self._closed(turn.reply), first, stop, conversation.weights[first])

    def _closed(self, reply: str) -> str:
        """`reply` up to the token that ends it: without white space or the next turn's header after that."""
        body, eos, rest = reply.rpartition(self._eos) if self._eos else ("", "", reply)
        if eos and not self._rest.fullmatch(rest):
            body, eos = "", ""
        closed = (body + eos) or reply.rstrip()
        return closed if closed.endswith(self._specials) else reply

    def _span(self, turn: _Turn, text: str) -> Span | None:
        """The turn's characters in the whole rendering; None where they are not there."""
        for reply in (turn.reply, self._without_conversation_end(turn.reply)):
            if text.startswith(turn.prompt + reply):
                return Span(len(turn.prompt), len(turn.prompt) + len(reply), turn.field, turn.weight)
        return None

    def _without_conversation_end(self, reply: str) -> str:
        """`reply` without a last special token after another one: some templates close the whole conversation so."""
        closing = max((token for token in self._specials if reply.endswith(token)), key=len, default="")
        shorter = reply.removesuffix(closing).rstrip()
        return shorter if shorter.endswith(self._specials) else reply

    def _text(self, conversation: _Conversation, stop: int, *, prompt: bool = False) -> str:
        if (stop, prompt) not in conversation.texts:
            conversation.texts[stop, prompt] = self.template.render(
                conversation.formed[:stop], conversation.tools, prompt=prompt, variables=conversation.variables
            )
        return conversation.texts[stop, prompt]


def _assistant_runs(conversation: _Conversation, first: int) -> Iterator[list[int]]:
    """Indices of consecutive assistant messages from `first` on that are trained."""
    run: list[int] = []
    for index, message in enumerate(conversation.messages):
        if message.get("role") == "assistant" and index >= first and conversation.weights[index] > 0:
            run.append(index)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _is_empty(message: Message) -> bool:
    content = message.get("content")
    text = content.strip() if isinstance(content, str) else content
    return not text and not message.get("tool_calls") and not message.get("reasoning_content")
