"""A JSON array, or objects one after another that may span lines: decoded one element at a time, so that the memory
follows the largest row and not the file."""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bumblecore_core.run.data.compressed import compression_of, open_data
from bumblecore_core.run.data.strict_json import Oddity, StrictDecoder, skip_space
from bumblecore_core.run.data.text_lines import (
    BOM,
    BadFile,
    BadRow,
    FileRow,
    ReadNotes,
    malformed,
    not_utf8,
    problem_in,
    refuse_nul,
    require_object,
    too_large,
    torn,
)

BLOCK = 1 << 20
LONGEST_CUT = 16  # characters at the end of a text that more text could still complete: an escape or a literal
HEAD, TAIL = 1 << 20, 1 << 16


class _Window:
    """The text of a file that has been read and not yet used. `at`: the next character; `line`: its line."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self.path = path
        self.text, self.at, self.line, self.bytes_read = "", 0, 1, 0
        self._file, self._rest, self._ended = file, b"", False
        self._column = 0  # characters on the line before `text`

    def fill(self) -> bool:
        """Reads on, by as much as is waiting: retrying to decode a long element then costs linear time. Whether there
        was more to read. Raises `BadFile` BC003 or BC020."""
        if self._ended:
            return False
        line_end = self.text.rfind("\n", 0, self.at)
        self._column = self._column + self.at if line_end < 0 else self.at - line_end - 1
        self.text, self.at = self.text[self.at :], 0
        raw = self._file.read1(max(BLOCK, len(self.text)))
        start, data = self.bytes_read - len(self._rest), self._rest + raw
        self.bytes_read += len(raw)
        self._ended = not raw
        if start == 0 and data.startswith(BOM):
            start, data = len(BOM), data[len(BOM) :]
        line = self.line + self.text.count("\n")
        refuse_nul(self.path, line, data, start)
        try:
            text, used = codecs.utf_8_decode(data, "strict", self._ended)
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            raise BadFile(line, not_utf8(self.path, line, start + error.start)) from None
        self.text, self._rest = self.text + text, data[used:]
        return True

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            self.move(skip_space(self.text, self.at))
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.fill():
                return ""

    def move(self, to: int) -> None:
        """Uses the text up to index `to`."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def place(self, position: int) -> tuple[int, int]:
        """(line, column) of the character at index `position`."""
        line_end = self.text.rfind("\n", 0, position)
        column = position - line_end if line_end >= 0 else self._column + position + 1
        return self.line + self.text.count("\n", self.at, position), column


def read_json_document(path: Path, notes: ReadNotes, max_row_bytes: int) -> Iterator[FileRow | BadRow]:
    """The elements of the document, by number where several start on one line. The first that is malformed, or cut off
    by `max_row_bytes`, ends the file."""
    numbered = _is_one_line(path)
    with open_data(path, notes) as file:
        window, decoder = _Window(path, file), StrictDecoder()
        array = window.peek() == "["
        closing = "]" if array else "}"
        if array:
            window.move(window.at + 1)
        row, before, line = 0, 0, 0
        try:
            while not _at_end(window, array=array, first=row == 0):
                row += 1
                line = -row if numbered or window.line == before else window.line
                before = window.line
                try:
                    value, end = _decode(window, decoder, line, max_row_bytes)
                except Oddity as odd:
                    # The decoder does not say where the element ends, so it is decoded again, leniently.
                    window.move(json.JSONDecoder().raw_decode(window.text, window.at)[1])
                    yield BadRow(line=line, problem=problem_in(path, line, odd))
                    continue
                size = _bytes_of(window.text, window.at, end)
                window.move(end)
                try:
                    if size > max_row_bytes:
                        raise BadFile(line, too_large(path, line, max_row_bytes))
                    yield FileRow(line=line, row=require_object(path, line, value), size=size)
                except BadFile as bad:
                    yield BadRow(line=line, problem=bad.problem)
        except json.JSONDecodeError as error:
            at = window.place(error.pos)
            here = -row if numbered and row else at[0]
            if error.pos >= len(window.text.rstrip()) or not _ends_with(window, closing):
                raise BadFile(here, torn(path, here)) from None
            raise BadFile(here, malformed(path, here, error.msg, at=at)) from None
        except ValueError:
            raise BadFile(line, malformed(path, line, "A number has too many digits")) from None


def _at_end(window: _Window, *, array: bool, first: bool) -> bool:
    """Whether no element follows; passes over the comma before one."""
    here = window.peek()
    if not array:
        return not here
    if here == "]":
        window.move(window.at + 1)
        if window.peek():
            raise json.JSONDecodeError("Text after the array's end", window.text, window.at)
        return True
    if not first:
        if here != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", window.text, window.at)
        window.move(window.at + 1)
        window.peek()
    return False


def _decode(window: _Window, decoder: StrictDecoder, line: int, max_row_bytes: int) -> tuple[Any, int]:
    """The element at the window's position and where it ends, read as far as needed."""
    while True:
        try:
            value, end = decoder.decode(window.text, window.at)
        except json.JSONDecodeError as error:
            unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(window.text) - LONGEST_CUT
            if not unfinished:
                raise
            if len(window.text) - window.at > max_row_bytes:
                raise BadFile(line, too_large(window.path, line, max_row_bytes)) from None
            if not window.fill():
                raise
        else:
            if end < len(window.text) or not window.fill():  # a number at the end of the text may go on
                return value, end


def _bytes_of(text: str, start: int, end: int) -> int:
    """UTF-8 bytes of a part of `text`."""
    return end - start if text.isascii() else len(text[start:end].encode())


def _is_one_line(path: Path) -> bool:
    """Whether the document has no line ends, as far as its first `HEAD` bytes show."""
    with open_data(path) as file:
        return b"\n" not in file.read(HEAD).strip()


def _ends_with(window: _Window, closing: str) -> bool:
    """Whether the content ends with `closing`."""
    if compression_of(window.path):  # cannot be read from its end
        while window.fill():
            window.at = max(0, len(window.text) - TAIL)
        return window.text.rstrip().endswith(closing)
    with window.path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return file.read().rstrip().endswith(closing.encode())
