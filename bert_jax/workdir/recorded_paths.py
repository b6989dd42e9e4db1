"""Relative paths in a workdir's config.json, found from whatever directory a command is started in.

A path is taken as it is where something is there. Otherwise it starts from the directory in which the run was started,
which config.json names relative to the workdir: a tree that holds both can be moved as a whole.
"""

import glob
import os
import re
from typing import Any

from bert_jax.files import is_local

# By section. `init` is part of what a run is, and the run no longer needs it; what is written to is not looked for.
_PATHS = {'data': ('corpus',), 'tokenizer': ('path',), 'task': ('directory',)}
_SOURCES = {  # text:GLOB, tsv:FILE, or a tuple with some in it
    'data': ('source', 'validation_source'),
    'probe': ('sets',),
    'task': ('train', 'validation', 'predict'),
}
_KIND = re.compile(r'[\w-]+:(?!//)')


def current_directory_from(workdir: str) -> str:
    """The current directory relative to a workdir; '' where that means nothing: on an object store."""
    return os.path.relpath(os.getcwd(), os.path.realpath(workdir)) if is_local(workdir) else ''


def resolve_recorded_paths(workdir: str, directory: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The `config` of a config.json, with paths that lead to their files.

    Args:
      directory: as `current_directory_from` gave it; whatever else an older or damaged file holds changes nothing.
    """
    if not isinstance(directory, str) or not directory or not is_local(workdir):
        return values
    directory = os.path.normpath(os.path.join(os.path.realpath(workdir), directory))
    found = dict(values)
    for find, sections in ((_found_path, _PATHS), (_found_source, _SOURCES)):
        for section, names in sections.items():
            if isinstance(own := found.get(section), dict):
                found[section] = own | {name: find(own[name], directory) for name in names if name in own}
    return found


def _found_path(path: Any, directory: str) -> Any:
    if not isinstance(path, str) or not path or not is_local(path) or os.path.exists(path):
        return path
    there = os.path.join(directory, path)
    return there if os.path.exists(there) else path


def _found_source(source: Any, directory: str) -> Any:
    if isinstance(source, list | tuple):
        return [_found_source(item, directory) for item in source]
    if not isinstance(source, str) or not (kind := _KIND.match(source)) or not is_local(source):
        return source
    if not (pattern := source[kind.end() :]):
        return source
    there = os.path.join(glob.escape(directory), pattern)
    return source if _leads_somewhere(pattern) or not _leads_somewhere(there) else kind.group() + there


def _leads_somewhere(pattern: str) -> bool:
    return os.path.exists(pattern) or next(glob.iglob(pattern, recursive=True), None) is not None
