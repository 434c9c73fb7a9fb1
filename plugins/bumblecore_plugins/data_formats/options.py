"""The options of the data formats: the names of a row's fields, and what a conversation may look like."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bumblecore_core import Options

TOOLS = "The field that holds the tool definitions, as a list or as JSON."
SYSTEM = "The field that holds the system message."


class TextOptions(Options):
    """Options of `text`."""

    field: str = Field("text", description="The field that holds the text.")


class AlpacaOptions(Options):
    """Options of `alpaca`: the names of a row's fields."""

    instruction: str = Field("instruction", description="The field that holds the task.")
    input: str = Field("input", description="The field that holds the task's input; joined to it by a line end.")
    output: str = Field("output", description="The field that holds the reply.")
    system: str = Field("system", description=SYSTEM)
    tools: str = Field("tools", description=TOOLS)
    history: str = Field("history", description="The field that holds earlier turns, as [user, assistant] pairs.")
    chosen: str = Field("chosen", description="The field that holds the preferred reply.")
    rejected: str = Field("rejected", description="The field that holds the dispreferred reply.")
    label: str = Field("kto_tag", description="The field that says whether the reply is desirable, as a boolean.")


class XlamOptions(Options):
    """Options of `xlam`: the names of a row's fields."""

    query: str = Field("query", description="The field that holds the question.")
    answers: str = Field("answers", description="The field that holds the calls that answer it, as a list or as JSON.")
    tools: str = Field("tools", description=TOOLS)
    system: str = Field("system", description=SYSTEM)


class ConversationOptions(Options):
    """Options of every format that reads lists of turns."""

    system: str = Field("system", description=SYSTEM)
    tools: str = Field("tools", description=TOOLS)
    roles: dict[str, Literal["system", "user", "assistant", "tool", "function_call"]] = Field(
        {}, description="Further names of roles, such as {character: assistant}; they override the known names."
    )
    merge_consecutive: bool = Field(
        False, description="Join consecutive turns of one role by a blank line; otherwise they are errors."
    )
    assistant_first: bool = Field(False, description="Accept conversations that begin with the assistant.")


class ShareGptOptions(ConversationOptions):
    """Options of `sharegpt`: the names of a row's and a turn's fields, and what its conversations may look like."""

    conversations: str = Field("conversations", description="The field that holds the turns.")
    role: str = Field("from", description="A turn's field that says who speaks.")
    content: str = Field("value", description="A turn's field that holds the text.")
    chosen: str = Field("chosen", description="The field that holds the preferred turn or turns.")
    rejected: str = Field("rejected", description="The field that holds the dispreferred turn or turns.")
    label: str = Field("kto_tag", description="The field that says whether the last turn is desirable, as a boolean.")


class OpenAIOptions(ConversationOptions):
    """Options of `openai`: the names of a row's fields, and what its conversations may look like."""

    messages: str = Field("messages", description="The field that holds the messages.")
    prompt: str = Field("prompt", description="The field that holds a prompt, a text or messages.")
    completion: str = Field("completion", description="The field that holds the prompt's reply, a text or messages.")
    label: str = Field("label", description="The field that says whether the last reply is desirable, as a boolean.")
    chosen: str = Field("chosen", description="The field that holds the preferred reply, a text or messages.")
    rejected: str = Field("rejected", description="The field that holds the dispreferred reply, a text or messages.")
