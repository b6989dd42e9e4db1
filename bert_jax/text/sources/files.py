"""Finds the files of a source: by name, by glob, or all in a directory."""

import glob
import os
from collections.abc import Iterator

from etils import epath

from bert_jax.errors import BadInput
from bert_jax.files import is_local, modified_at, size_of
from bert_jax.text.sources.compression import without_compression


def find_files(pattern: str, suffixes: tuple[str, ...] | None = None) -> list[epath.Path]:
    """Returns the files that match a glob, sorted by name.

    Args:
      suffixes: if given, a directory stands for the files below it with one of these suffixes, compressed or not,
        in any case of letters; () for all. Hidden files and directories are left out.
    """
    if not is_local(pattern):
        head, _, tail = pattern.partition('*')
        root = head.rpartition('/')[0]
        files = sorted(epath.Path(root).glob(pattern[len(root) + 1 :])) if tail or '*' in pattern else []
        files = files or [path for path in [epath.Path(pattern)] if path.exists()]
    else:
        files = [epath.Path(name) for name in sorted(_local_names(pattern))]
    if suffixes is not None and len(files) == 1 and files[0].is_dir():
        below = (path for path in _walk(files[0]) if not suffixes or _has_suffix(path.name, suffixes))
        return sorted(below)
    return [path for path in files if not path.is_dir()]


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return without_compression(name).lower().endswith(suffixes)


def _walk(directory: epath.Path) -> Iterator[epath.Path]:
    """Yields the files below a directory, without hidden ones."""
    for path in directory.iterdir():
        if path.name.startswith('.'):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _local_names(pattern: str) -> list[str]:
    """Returns the matches of a glob. If there are none, leading directories with such names are taken literally."""
    if found := glob.glob(pattern, recursive=True):
        return found
    names = pattern.split('/')
    for end in range(len(names), 0, -1):
        literal = '/'.join(names[:end])
        if glob.has_magic(literal) and os.path.exists(literal):
            return glob.glob('/'.join([glob.escape(literal), *names[end:]]), recursive=True)
    return []


def no_file_error(source: str, pattern: str, suffixes: tuple[str, ...] = ()) -> BadInput:
    """Returns the error for a source without files."""
    where = f'config.data.source={source}'
    if is_local(pattern) and os.path.isdir(pattern):
        named = f' whose name ends in {" or ".join(suffixes)}' if suffixes else ''
        kind = source.partition(':')[0]
        fix = f"--config.data.source='{kind}:{pattern.rstrip('/')}/*' for files with other names" if suffixes else ''
        return BadInput(where, f'{pattern} contains no file{named}', 'a directory with such files', fix)
    is_relative = is_local(pattern) and not os.path.isabs(pattern)
    directory = f' in {os.getcwd()}' if is_relative else ''
    expected = 'a file, a directory, or a pattern that matches files'
    return BadInput(where, f'no file matches {pattern}{directory}', expected)


def sizes_and_times(paths: list[epath.Path]) -> dict[str, list[int]]:
    """Returns {path: [bytes, modification time]} of files."""
    return {str(path): [size_of(path), int(modified_at(path))] for path in paths}
