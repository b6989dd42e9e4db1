"""Sources -> a stream of documents, one at a time, whatever the size of the source."""

import dataclasses
import glob
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.text.sentences import split_into_sentences

_CHUNK_BYTES = 1 << 20
_LONGEST_DOCUMENT = 1 << 24  # characters; a text file without blank lines is cut here, so that memory is bounded
_RECORDS_AT_ONCE = 256
_VERSION = re.compile(r'[\d*]+\.[\d*]+\.[\d*]+')


@dataclasses.dataclass(frozen=True)
class Document:
    """One text: `name` says where it came from (file:line, module), `sentences` are never empty strings."""

    name: str
    sentences: list[str]


def read_documents(source: str, *, text_field: str, split_sentences: bool, counts: Counter) -> Iterator[Document]:
    """Reads the documents of a source in a fixed order.

    Args:
      source: `python-docs`, `text:GLOB`, `jsonl:GLOB`, `parquet:GLOB` or `tfds:NAME[:SPLIT]`. In a text file a
        line is a sentence or paragraph and a blank line ends a document. Text and JSON files may end in `.gz`, `.zst`.
      text_field: the field, column or feature that holds the text (jsonl, parquet, tfds).
      split_sentences: whether paragraphs are split into sentences; if not, a line is a sentence.
      counts: gets the number of `empty_document`, `invalid_utf8_replaced` (lines or records), `nul_bytes_removed`,
        `long_document_cut` and `unparsable_module`.

    Raises:
      BadInput: for a source without a file, a file without text, a damaged file, a bad record or a field that is
        not there. Names file and line, never text.
    """
    for name, paragraphs in _read_source(source, text_field, counts):
        sentences = []
        for paragraph in paragraphs:
            paragraph = _clean(paragraph, counts).strip()
            if paragraph:
                sentences += split_into_sentences(paragraph) if split_sentences else [paragraph]
        if sentences:
            yield Document(name, sentences)
        else:
            counts['empty_document'] += 1


# --- Each source gives (name, paragraphs). ---


def _read_source(source: str, text_field: str, counts: Counter) -> Iterator[tuple[str, Iterator[str] | list[str]]]:
    if source == 'python-docs':
        from bert_jax.text import python_docs

        for name, path in python_docs.find_modules():
            yield name, python_docs.read_paragraphs(path, counts)
        return
    kind, _, rest = source.partition(':')
    if kind == 'tfds':
        yield from _read_tfds(rest, text_field, counts)
        return
    readers: dict[str, Callable] = {'text': _read_text, 'jsonl': _read_jsonl, 'parquet': _read_parquet}
    if kind not in readers:
        raise BadInput('config.data.source', f'is {source!r}', 'python-docs, text:, jsonl:, parquet: or tfds:')
    for path in find_files(source, rest):
        has_text = False
        for document in readers[kind](path, text_field, counts):
            has_text = True
            yield document
        if not has_text:
            raise BadInput(str(path), 'holds no text', 'a file with text', 'remove it, or narrow data.source')


def find_files(source: str, pattern: str) -> list[epath.Path]:
    """The files that a pattern matches, sorted by name; `BadInput` when there is none."""
    if '://' in pattern:
        head, _, tail = pattern.partition('*')
        root = head.rpartition('/')[0]
        files = sorted(epath.Path(root).glob(pattern[len(root) + 1 :])) if tail or '*' in pattern else []
        files = files or [path for path in [epath.Path(pattern)] if path.exists()]
    else:
        files = [epath.Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in files if not path.is_dir()]
    if not files:
        raise BadInput(f'data.source={source}', f'no file matches {pattern}', 'at least one file')
    return files


def _read_text(path: epath.Path, text_field: str, counts: Counter) -> Iterator[tuple[str, list[str]]]:
    del text_field  # a text file has no fields
    paragraphs, size, first_line = [], 0, 1
    for number, line in enumerate(_read_lines(path, counts), 1):
        if line.strip():
            if not paragraphs:
                first_line = number
            paragraphs.append(line)
            size += len(line)
        if paragraphs and (not line.strip() or size >= _LONGEST_DOCUMENT):
            if line.strip():
                counts['long_document_cut'] += 1
            yield f'{path}:{first_line}', paragraphs
            paragraphs, size = [], 0
    if paragraphs:
        yield f'{path}:{first_line}', paragraphs


def _read_jsonl(path: epath.Path, text_field: str, counts: Counter) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(_read_lines(path, counts), 1):
        if not line.strip():
            continue
        where = f'{path}:{number}'
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            column = f' (column {error.colno})' if isinstance(error, json.JSONDecodeError) else ''
            raise BadInput(where, f'is not JSON{column}', 'a JSON object a line') from None
        if not isinstance(record, dict):
            raise BadInput(where, f'is a JSON {type(record).__name__}', 'a JSON object a line')
        yield where, _paragraphs_of(record, text_field, where, counts)


def _read_parquet(path: epath.Path, text_field: str, counts: Counter) -> Iterator[tuple[str, list[str]]]:
    import pyarrow
    from pyarrow import parquet

    row = 0
    with path.open('rb') as file:
        try:
            table = parquet.ParquetFile(file)
            _check_field(text_field, table.schema_arrow.names, str(path))
            for batch in table.iter_batches(batch_size=_RECORDS_AT_ONCE, columns=[text_field]):
                column = batch.column(0)
                if not pyarrow.types.is_null(column.type):
                    column = column.cast(pyarrow.large_binary())  # decoded below, so that bad UTF-8 is counted
                for value in column.to_pylist():
                    where = f'{path}:{row}'
                    yield where, _paragraphs_of({text_field: value}, text_field, where, counts)
                    row += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise BadInput(str(path), f'cannot be read as parquet ({type(error).__name__})', 'text columns') from None


def _read_tfds(spec: str, text_field: str, counts: Counter) -> Iterator[tuple[str, list[str]]]:
    import tensorflow_datasets as tfds

    head, bracket, slicing = spec.partition('[')  # a slice may hold colons of its own: train[:10%]
    name, _, split = head.rpartition(':')
    if not name or _VERSION.fullmatch(split):
        name, split = head, 'train'
    split += bracket + slicing
    try:
        builder = tfds.builder(name, file_format='array_record')
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise BadInput(
            f'data.source=tfds:{spec}',
            f'is not a dataset here ({type(error).__name__})',
            'NAME[/CONFIG][:VERSION][:SPLIT]',
        ) from None
    _check_field(text_field, list(builder.info.features), f'data.source=tfds:{spec}')
    builder.download_and_prepare(file_format='array_record')
    if split.partition('[')[0].partition('+')[0] not in builder.info.splits:
        raise BadInput(f'data.source=tfds:{spec}', f'has no split {split!r}', ', '.join(builder.info.splits))
    records = builder.as_data_source(split=split)
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        indices = range(start, min(start + _RECORDS_AT_ONCE, len(records)))
        for index, record in zip(indices, records.__getitems__(indices), strict=True):
            where = f'tfds:{spec}:{index}'
            yield where, _paragraphs_of(record, text_field, where, counts)


# --- Text out of bytes and records. ---


def _check_field(text_field: str, names: list[str], where: str) -> None:
    if text_field not in names:
        raise BadInput(where, f'has no field {text_field!r}', ', '.join(names), '--config.data.text_field=NAME')


def _paragraphs_of(record: dict[str, Any], text_field: str, where: str, counts: Counter) -> list[str]:
    _check_field(text_field, list(record)[:20], where)
    text = record[text_field]
    if isinstance(text, bytes):
        text = _decode(text, counts)
    if text is None:
        return []
    if not isinstance(text, str):
        raise BadInput(where, f'field {text_field!r} is of type {type(text).__name__}', 'text')
    return text.splitlines()


def _decode(data: bytes, counts: Counter) -> str:
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        counts['invalid_utf8_replaced'] += 1
        return data.decode('utf-8', 'replace')


def _clean(text: str, counts: Counter) -> str:
    if '\0' in text:
        counts['nul_bytes_removed'] += text.count('\0')
        text = text.replace('\0', '')
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape in JSON or in a string literal
        counts['invalid_utf8_replaced'] += 1
        text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text


def _read_lines(path: epath.Path, counts: Counter) -> Iterator[str]:
    parts: list[bytes] = []
    is_first = True
    for chunk in _read_chunks(path):
        if is_first and chunk.startswith((b'\xff\xfe', b'\xfe\xff')):
            raise BadInput(str(path), 'is UTF-16', 'UTF-8', f'iconv -f UTF-16 -t UTF-8 {path}')
        if is_first:
            chunk, is_first = chunk.removeprefix(b'\xef\xbb\xbf'), False
        head, *lines = chunk.split(b'\n')
        parts.append(head)
        if lines:
            yield _decode(b''.join(parts), counts).rstrip('\r')
            parts = [lines.pop()]
            for line in lines:
                yield _decode(line, counts).rstrip('\r')
    if any(parts):
        yield _decode(b''.join(parts), counts).rstrip('\r')


def _read_chunks(path: epath.Path) -> Iterator[bytes]:
    with path.open('rb') as file:
        if path.suffix == '.zst':
            yield from _decompress_zst(path, file)
            return
        stream = gzip.GzipFile(fileobj=file) if path.suffix == '.gz' else file
        while True:
            try:
                chunk = stream.read(_CHUNK_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise _damaged(path, error) from None
            if not chunk:
                return
            yield chunk


def _decompress_zst(path: epath.Path, file: Any) -> Iterator[bytes]:
    """Frame by frame: the stream reader of zstandard takes a truncated file for a complete one."""
    import zstandard

    frame, rest = None, b''
    try:
        while data := rest or file.read(_CHUNK_BYTES):
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if chunk := frame.decompress(data):
                yield chunk
            rest = frame.unused_data if frame.eof else b''
            frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise _damaged(path, error) from None
    if frame is not None:
        raise _damaged(path, EOFError())


def _damaged(path: epath.Path, error: Exception) -> BadInput:
    return BadInput(str(path), f'is truncated or damaged ({type(error).__name__})', 'a complete file', 'copy it again')
