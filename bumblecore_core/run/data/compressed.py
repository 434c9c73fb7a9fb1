"""The content of data files as streams of bytes: gzip, bzip2, xz and Zstandard are decompressed while they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import DataError, Problem

if TYPE_CHECKING:
    from bumblecore_core.run.data.text_lines import ReadNotes

NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
"""The suffixes of compressed files, which follow the suffix of their content: `rows.jsonl.gz`."""
MAGIC: dict[str, tuple[bytes, ...]] = {
    ".gz": (b"\x1f\x8b",),
    ".bz2": tuple(
        b"BZh%d" % level + of for level in range(1, 10) for of in (b"1AY&SY", b"\x17rE8P\x90")
    ),  # a block or none
    ".xz": (b"\xfd7zXZ\0",),
    ".zst": (b"\x28\xb5\x2f\xfd", *(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))),  # or skippable
}
"""What the files of each compression begin with."""
LONGEST_MAGIC = 10
HEAD = 1 << 16  # bytes that tell the line ends
ZSTD_INPUT = 256  # bytes; they expand to 8 MiB at most, since a block has 4 bytes or more and holds 128 KiB or less


class DamagedArchive(Exception):
    """Compressed data that cannot be read on: what is wrong with it, and the library's message if it has one."""

    def __init__(self, problem: str, message: str = "") -> None:
        super().__init__(problem)
        self.problem, self.message = problem, message


def compression_of(path: Path) -> str:
    """`.gz`, `.bz2`, `.xz`, `.zst`, or nothing."""
    suffix = path.suffix.lower()
    return suffix if suffix in NAMES else ""


def form_of(path: Path) -> str:
    """The suffix that names the form of the content, in lower case: `.jsonl` for `rows.jsonl.gz`."""
    return (path.with_suffix("") if compression_of(path) else path).suffix.lower()


def missing_decoder(path: Path) -> Problem | None:
    """BC071 if reading `path` needs a package that is not installed."""
    if compression_of(path) != ".zst" or sys.version_info >= (3, 14) or util.find_spec("zstandard") is not None:
        return None
    problem = "reading Zstandard needs the package 'zstandard', which is not installed"
    return Problem(code="BC071", place=str(path), problem=problem, fix='Install it: pip install "bumblecore[zstd]"')


def open_data(path: Path, notes: ReadNotes | None = None) -> io.BufferedReader:
    """The decompressed content. CR becomes LF where a file has no other line ends. `notes` counts bytes of the file.

    Reading raises `DamagedArchive` behind the last byte that could be decompressed. Raises `DataError` BC071.
    """
    if (problem := missing_decoder(path)) is not None:
        raise DataError([problem])
    file = path.open("rb", buffering=0)
    compression = compression_of(path) if os.fstat(file.fileno()).st_size else ""
    return io.BufferedReader(_Content(file, compression, notes), HEAD)


class _Content(io.RawIOBase):
    """Fills whole buffers, so that a block of the size that was asked for is short only at the end."""

    def __init__(self, file: io.FileIO, compression: str, notes: ReadNotes | None) -> None:
        self._file, self._notes = file, notes
        self._name = NAMES.get(compression, "")
        self._read_some, self._errors = _reader(file, compression)
        self._damaged: DamagedArchive | None = None
        self._ahead = b""
        self._ahead = self._read(HEAD)
        # A CR at the end of the head may belong to a CR LF.
        self._carriage_returns = b"\r" in self._ahead[:-1] and b"\n" not in self._ahead

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Raises the `DamagedArchive` only when the bytes before it have been handed out."""
        data = self._read(len(buffer))
        if not data and self._damaged is not None:
            raise self._damaged
        buffer[: len(data)] = data.replace(b"\r", b"\n") if self._carriage_returns else data
        return len(data)

    def _read(self, size: int) -> bytes:
        """The next `size` bytes, or those before the end or the damage."""
        pieces, missing = [self._ahead[:size]], size - len(self._ahead[:size])
        self._ahead = self._ahead[size:]
        while missing and (piece := self._piece(missing)):
            pieces.append(piece)
            missing -= len(piece)
        if self._notes is not None:
            self._notes.bytes_read = self._file.tell()
        return b"".join(pieces)

    def _piece(self, most: int) -> bytes:
        if self._damaged is not None:
            return b""
        try:
            return self._read_some(most)
        except EOFError:
            self._damaged = DamagedArchive(f"the {self._name} data is cut short")
        except self._errors as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                raise
            self._damaged = DamagedArchive(f"the {self._name} data is damaged", str(error))
        return b""


def _reader(file: io.FileIO, compression: str) -> tuple[Callable[[int], bytes], tuple[type[Exception], ...]]:
    """Reads up to a number of bytes of the content, and the exceptions that this raises for damage besides `EOFError`.

    `read1`, since `read` would lose what it has when it meets the damage.
    """
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file, mode="rb").read1, (OSError, zlib.error)
    if compression == ".bz2":
        return bz2.BZ2File(file).read1, (OSError, ValueError)
    if compression == ".xz":
        return lzma.LZMAFile(file).read1, (lzma.LZMAError,)
    if compression == ".zst":
        return _zstd_reader(file)
    return file.read, ()


def _zstd_reader(file: io.FileIO) -> tuple[Callable[[int], bytes], tuple[type[Exception], ...]]:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdFile(file).read1, (zstd.ZstdError,)
    import zstandard

    return _ZstdFrames(file, zstandard.ZstdDecompressor()).read, (zstandard.ZstdError,)


class _ZstdFrames:
    """The content of all frames. zstandard's own reader takes a frame that is cut short for a whole one."""

    def __init__(self, file: io.FileIO, decompressor: Any) -> None:
        self._file, self._decompressor = io.BufferedReader(file, HEAD), decompressor
        self._frame: Any = None
        self._input, self._output = b"", memoryview(b"")

    def read(self, size: int) -> bytes:
        """Raises `EOFError` where the file ends inside a frame."""
        while not self._output:
            self._input = self._input or self._file.read(ZSTD_INPUT)
            if not self._input:
                if self._frame is not None:
                    raise EOFError
                return b""
            self._frame = self._frame or self._decompressor.decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            ended = self._frame.eof
            self._input = self._frame.unused_data if ended else b""
            if ended:
                self._frame = None
        data, self._output = bytes(self._output[:size]), self._output[size:]
        return data
