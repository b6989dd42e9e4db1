"""Resolves relative paths in a workdir's config.json, from whatever directory a command is started in.

A path that exists is used as it is. Otherwise it is taken relative to the directory in which the run was started, which
config.json records relative to the workdir: a tree that contains both can be moved as a whole.
"""

import glob
import os
import re
from typing import Any

from bert_jax.files import is_local

# By section. Not `init`, which identifies a run and is no longer needed; nor output paths.
_PATHS = {'data': ('corpus',), 'tokenizer': ('path',), 'task': ('directory',)}
_SOURCES = {  # text:GLOB, tsv:FILE, or a tuple that contains such sources
    'data': ('source', 'validation_source'),
    'probe': ('sets',),
    'task': ('train', 'validation', 'predict'),
}
_KIND = re.compile(r'[\w-]+:(?!//)')


def current_directory_from(workdir: str) -> str:
    """Returns the current directory relative to a workdir; '' for a workdir on an object store."""
    return os.path.relpath(os.getcwd(), os.path.realpath(workdir)) if is_local(workdir) else ''


def resolve_recorded_paths(workdir: str, directory: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the `config` of a config.json with paths that exist from the current directory, where possible.

    Args:
      directory: what `current_directory_from` returned; other values, in older or damaged files, are ignored.
    """
    if not isinstance(directory, str) or not directory or not is_local(workdir):
        return values
    directory = os.path.normpath(os.path.join(os.path.realpath(workdir), directory))
    resolved = dict(values)
    for resolve, sections in ((_resolve_path, _PATHS), (_resolve_source, _SOURCES)):
        for section, names in sections.items():
            if isinstance(fields := resolved.get(section), dict):
                resolved[section] = fields | {
                    name: resolve(fields[name], directory) for name in names if name in fields
                }
    return resolved


def _resolve_path(path: Any, directory: str) -> Any:
    if not isinstance(path, str) or not path or not is_local(path) or os.path.exists(path):
        return path
    candidate = os.path.join(directory, path)
    return candidate if os.path.exists(candidate) else path


def _resolve_source(source: Any, directory: str) -> Any:
    if isinstance(source, list | tuple):
        return [_resolve_source(item, directory) for item in source]
    if not isinstance(source, str) or not (kind := _KIND.match(source)) or not is_local(source):
        return source
    if not (pattern := source[kind.end() :]):
        return source
    candidate = os.path.join(glob.escape(directory), pattern)
    return source if _matches(pattern) or not _matches(candidate) else kind.group() + candidate


def _matches(pattern: str) -> bool:
    return os.path.exists(pattern) or next(glob.iglob(pattern, recursive=True), None) is not None
