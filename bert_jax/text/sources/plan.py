"""Divides a source into chunks, after a look at its files: sizes, first bytes, columns."""

from etils import epath

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.files import is_local
from bert_jax.text import chunks
from bert_jax.text.chunks import FileRange, Source
from bert_jax.text.sources import hugging_face, python_docs, tfds
from bert_jax.text.sources.files import find_files, no_file_error, sizes_and_times
from bert_jax.text.sources.formats import HEAD_BYTES, check_first_bytes
from bert_jax.text.sources.kinds import FILE_KINDS
from bert_jax.text.sources.options import ReadOptions

_DEFAULT_OPTIONS = ReadOptions()


def plan_source(source: str, source_index: int, options: ReadOptions = _DEFAULT_OPTIONS) -> Source:
    """Divides a source into chunks. Empty files are skipped.

    Raises:
      BadInput: for an unknown kind of source, one without files or with empty files only, files of another format, or a
        table without a requested column.
    """
    kind, _, location = source.partition(':')
    if source == 'python-docs':
        sized = [(FileRange(str(path)), path.stat().st_size) for _, path in python_docs.find_modules()]
        return Source(source, chunks.grouped(kind, source_index, sized), {})  # reinstalling changes the times
    if kind == 'tfds':
        return tfds.plan(source, source_index, options)
    found = _find(source)
    if not found.paths:
        raise no_file_error(source, location, FILE_KINDS[found.kind].suffixes)
    planned = _plan_files(source, source_index, found, options)
    # The size of a remote dataset's files identifies them well enough, and a corpus is used without the network.
    return Source(source, planned.chunks, {}) if _is_on_hub(source) else planned


def _is_on_hub(source: str) -> bool:
    return source.startswith(f'hf:{hugging_face.HUB}')


def _find(source: str) -> hugging_face.Files:
    kind, _, location = source.partition(':')
    if _is_on_hub(source):
        return hugging_face.find_on_hub(location)
    if kind == 'hf':
        return hugging_face.find_local(location)
    if kind not in config.SOURCE_KINDS or kind not in FILE_KINDS:
        expected = ', '.join(['python-docs', *(f'{each}:…' for each in config.SOURCE_KINDS)])
        raise BadInput('config.data.source', f'is {source!r}', expected)
    return hugging_face.Files(kind, find_files(location, FILE_KINDS[kind].suffixes))


def _plan_files(source: str, source_index: int, found: hugging_face.Files, options: ReadOptions) -> Source:
    files = sizes_and_times(found.paths)
    paths = [path for path in found.paths if files[str(path)][0]]
    if not paths:
        raise BadInput(next(iter(files)), 'is empty', 'a file with text')
    for path in filter(is_local, paths):  # remote files are checked when they are read
        check_first_bytes(str(path), _first_bytes(path), found.kind, options.encoding)
    size = chunks.chunk_size(sum(length for length, _ in files.values()))
    divide = FILE_KINDS[found.kind].divide
    sized = [file_range for path in paths for file_range in divide(path, files[str(path)][0], size, options)]
    return Source(source, chunks.grouped(found.kind, source_index, sized, size), files)


def _first_bytes(path: epath.Path) -> bytes:
    try:
        with path.open('rb') as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise BadInput(str(path), f'cannot be read ({error.strerror or error})', 'a file to read') from error


def stat_files(source: str) -> dict[str, list[int]]:
    """Returns {path: [bytes, modification time]} of a source of files; {} for other sources, or without files."""
    kind = source.partition(':')[0]
    if kind in ('python-docs', 'tfds') or _is_on_hub(source):
        return {}
    try:
        return sizes_and_times(_find(source).paths)
    except BadInput:  # the directory of hf:DIR no longer exists
        return {}
