"""Converts rows such as {"note": "some text"}."""

from bumblecore_core import RowError, TextSample


class Note:
    def convert(self, *, row):
        note = row.get("note")
        if not isinstance(note, str):
            raise RowError(code="BC011", field="note", problem=f"it is a {type(note).__name__}", fix="Give a text")
        return TextSample(text=note)
