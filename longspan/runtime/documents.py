"""Documents as streams of text: a file, several files, a text, or an iterator of text.

Text comes in pieces of at most 65,536 characters, so a document's length costs no memory. It knows
nothing of tokens.

    document = open_document("book.txt")
    for piece in document.pieces():
        ...
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from longspan.errors import BadDocument

PIECE = 65_536
SEPARATOR = "\n\n"
_BOM = codecs.BOM_UTF8


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRange:
    """Where a document stands in a text: UTF-8 bytes from `first_byte` up to, not with, `end_byte`.

    A file's byte order mark is not read, and so not counted.
    """

    name: str
    first_byte: int
    end_byte: int

    def text(self) -> str:
        """The range for people."""
        return f"{self.name}: bytes {self.first_byte:,} up to {self.end_byte:,}"

    def moved(self, count: int) -> DocumentRange:
        """The same range where `count` bytes stand before the text."""
        return replace(self, first_byte=self.first_byte + count, end_byte=self.end_byte + count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text that can be streamed.

    Attributes:
        name: what messages and `.span` files call it.
        bytes_total: UTF-8 bytes of the text, or None where only the end will tell.
        again: whether `pieces` may be called more than once.
        pieces: the text from its start, in pieces of at most 65,536 characters. While it is
            consumed it raises `BadDocument` for what is not UTF-8 text, and at its end for a
            document of white space only.
        parts: where each of several documents stands in the text, once `pieces` was read to its
            end; none for a document that is not made of several.
    """

    name: str
    bytes_total: int | None
    again: bool
    pieces: Callable[[], Iterator[str]]
    parts: Callable[[], tuple[DocumentRange, ...]] = tuple


Source = str | Path | Document | Iterable[str | Path]


def open_document(source: Source) -> Document:
    """Find out what `source` is, and check what can be checked before reading.

    Args:
        source: a `Path` is a file. A str that names a file is that file; one that only looks like
            a path is refused; any other is the text itself. A list or tuple holds several
            documents, joined with two line ends. Any other iterable of str yields one text. A
            `Document` stays what it is.

    Raises:
        BadDocument: a file is missing, a folder, empty, or unreadable; a text is empty.
    """
    if isinstance(source, Document):
        return source
    if isinstance(source, Path):
        return _file(source)
    if isinstance(source, str):
        return _path_or_text(source)
    if isinstance(source, list | tuple):
        return _several([open_document(item) for item in source])
    if isinstance(source, bytes | bytearray) or not isinstance(source, Iterable):
        raise BadDocument(
            f"A document was expected, and found {source!r:.80}. Give a text, a path, a list of "
            "them, or an iterator of text; decode bytes first."
        )
    return _iterator(source)


def read_text(path: Path) -> str:
    """The whole text of a file.

    Raises:
        BadDocument: the file is missing, a folder, empty, unreadable, or not UTF-8 text.
    """
    return "".join(_file(path).pieces())


def _path_or_text(source: str) -> Document:
    if os.path.isfile(source):
        return _file(Path(source))
    if _looks_like_path(source):
        raise BadDocument(
            f"The document {source!r} looks like a path, and no such file exists. Check the name; "
            "to read these characters as the text itself, pass iter([text])."
        )
    return _checked(name="text", total=_utf8_length(source), again=True, texts=lambda: (source,))


def _looks_like_path(text: str) -> bool:
    one_word = bool(text) and not any(char.isspace() for char in text[:4096])
    return one_word and (bool(Path(text).suffix) or os.sep in text)


def _file(path: Path) -> Document:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise BadDocument(
                f"The document {path} is a folder. Name the files in it, as in {path / '*.txt'}."
            )
        regular = stat.S_ISREG(found.st_mode)
        if regular and found.st_size == 0:
            raise BadDocument(_empty(str(path)))
        if regular:
            with path.open("rb") as file:
                bom = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    except FileNotFoundError as error:
        raise BadDocument(f"The document {path} does not exist. Check the name.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    return _checked(
        name=path.name,
        total=found.st_size - bom if regular else None,
        again=regular,
        texts=lambda: _decoded(path),
    )


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file; a byte order mark is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read = 0
    try:
        with path.open("rb") as file:
            while block := file.read(PIECE):
                if (nul := block.find(b"\0")) >= 0:
                    raise _binary(path, read + nul, block if read == 0 else b"")
                read += len(block)
                yield decoder.decode(block)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        offset = read - len(error.object) + error.start
        found = f"0x{error.object[error.start]:02x}"
        raise BadDocument(
            f"The document {path} is not UTF-8 text: byte {offset:,} is {found} "
            f"({error.reason}). Convert it first, for instance with: "
            f"iconv -f ISO-8859-1 -t UTF-8 {path} > utf8.txt"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _several(documents: list[Document]) -> Document:
    if not documents:
        raise BadDocument("There is no document to read: the list is empty. Give at least one.")
    if len(documents) == 1:
        return documents[0]

    parts: list[DocumentRange] = []

    def texts() -> Iterator[str]:
        parts.clear()
        end = 0
        for i, document in enumerate(documents):
            if i:
                end += len(SEPARATOR)
                yield SEPARATOR
            first = end
            for piece in document.pieces():
                end += len(piece.encode())
                yield piece
            parts.append(DocumentRange(name=document.name, first_byte=first, end_byte=end))

    sizes = [document.bytes_total for document in documents]
    known = [size for size in sizes if size is not None]
    joints = len(SEPARATOR) * (len(documents) - 1)
    return Document(
        name=" + ".join(document.name for document in documents),
        bytes_total=sum(known) + joints if len(known) == len(sizes) else None,
        again=all(document.again for document in documents),
        pieces=texts,
        parts=lambda: tuple(parts),
    )


def _iterator(source: Iterable[str | Path]) -> Document:
    def texts() -> Iterator[str]:
        for item in source:
            if not isinstance(item, str):
                raise BadDocument(
                    f"A document given as an iterator must yield str; it yielded "
                    f"{type(item).__name__}. Decode it first; give files as a list of paths."
                )
            _utf8_length(item)
            yield item

    return _checked(name="stream", total=None, again=False, texts=texts)


def _checked(
    *, name: str, total: int | None, again: bool, texts: Callable[[], Iterable[str]]
) -> Document:
    """A document whose `pieces` are short, and which is refused if it is blank."""

    def pieces() -> Iterator[str]:
        blank = True
        for text in texts():
            for start in range(0, len(text), PIECE):
                piece = text[start : start + PIECE]
                blank = blank and piece.isspace()
                yield piece
        if blank:
            raise BadDocument(_empty(name))

    if total == 0:
        raise BadDocument(_empty(name))
    return Document(name=name, bytes_total=total, again=again, pieces=pieces)


def _utf8_length(text: str) -> int:
    try:
        return sum(len(text[i : i + PIECE].encode()) for i in range(0, len(text), PIECE))
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise BadDocument(
            f"The text cannot be written as UTF-8: it holds U+{code:04X}, half of a surrogate "
            "pair. Decode its bytes again with the right encoding."
        ) from error


def _empty(name: str) -> str:
    return f"The document {name} is empty or only white space. Give a document with text in it."


def _unreadable(path: Path, error: OSError) -> BadDocument:
    return BadDocument(
        f"The document {path} cannot be read: {error.strerror}. Check the file and its permissions."
    )


def _binary(path: Path, offset: int, start: bytes) -> BadDocument:
    utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    rest = path if path.suffix else "FILE"
    how = f"iconv -f UTF-16 -t UTF-8 {rest} > utf8.txt" if utf16 else f"pdftotext {rest}"
    return BadDocument(
        f"The document {path} is not text: byte {offset:,} is NUL. Convert it to UTF-8 text "
        f"first, for instance with: {how}"
    )
