"""What other libraries raise, as one line for an error of ours."""

from __future__ import annotations

LONGEST = 300


def library_message(error: BaseException) -> str:
    """The message on one line, cut to 300 characters; with the exception's type where it is no sentence by itself."""
    text = " ".join(str(error).split())
    if " " not in text or isinstance(error, LookupError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
