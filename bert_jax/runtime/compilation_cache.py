"""Compiled programs, kept from one start to the next where nobody else can write: a program is code that will run."""

import hashlib
import os
import pathlib
import platform
import stat
from typing import Any

import jax

from bert_jax.console import say
from bert_jax.runtime.caches import cache_directory

_MOST_BYTES = 4 * 2**30
_WORTH_KEEPING_S = 0.3  # of compiling


def enable_compilation_cache() -> None:
    """Lets jax keep what it compiles in ~/.cache/bert_jax/programs; to be called before the first compile.

    `JAX_COMPILATION_CACHE_DIR` names another place, `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing. Where the
    directory cannot be made or is not safe, that is said, and nothing is kept.
    """
    settings: Any = jax.config  # whose fields are added when jax is imported
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    try:
        cache = cache_directory().resolve()
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory = private_directory(cache / 'bert_jax' / 'programs' / _processor_hash(), cache.parent)
        _remove_oldest(directory)
    except OSError as error:
        reason = error.strerror if error.strerror and not error.filename else error
        say(f'Compiled programs are not kept: {reason}')
        return
    jax.config.update('jax_compilation_cache_dir', str(directory))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', _WORTH_KEEPING_S)


def _processor_hash() -> str:
    """The name of this kind of processor: a home directory may serve several, and programs fit one."""
    return hashlib.sha256(_processor().encode()).hexdigest()[:16]


def _processor() -> str:
    """What the code compiled for this machine's processor depends on."""
    told = [platform.machine()]
    information = pathlib.Path('/proc/cpuinfo')
    if information.exists():
        names = ('model name', 'flags', 'Features', 'CPU part')
        lines = information.read_text().split('\n\n')[0].splitlines()
        told += [line for line in lines if line.partition('\t')[0].strip() in names]
    return '\n'.join(told)


def private_directory(path: pathlib.Path, home: pathlib.Path) -> pathlib.Path:
    """The directory, each level of it below `home` made if it is not there.

    Whoever can write to one of the levels can put another directory in place of the next one.

    Raises:
      PermissionError: when a level belongs to someone else, or others may write to it.
      OSError: when one cannot be made.
    """
    below = path.relative_to(home).parts
    for depth in range(len(below)):
        place = home.joinpath(*below[: depth + 1])
        place.mkdir(exist_ok=True, mode=0o700)
        facts = place.lstat()
        if not stat.S_ISDIR(facts.st_mode):
            raise PermissionError(f'{place} is a link or a file; expected a directory of your own')
        if facts.st_uid != os.geteuid():
            raise PermissionError(f'{place} belongs to user {facts.st_uid}, not to you ({os.geteuid()})')
        if facts.st_mode & 0o022:
            raise PermissionError(f'{place} can be written by others (fix: chmod go-w {place})')
    return path


def _remove_oldest(directory: pathlib.Path) -> None:
    """Keeps the programs used last, up to a few gigabytes."""
    files = [(path.stat(), path) for path in directory.iterdir() if path.is_file()]
    left = sum(facts.st_size for facts, _ in files)
    for facts, path in sorted(files, key=lambda item: max(item[0].st_atime, item[0].st_mtime)):
        if left <= _MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        left -= facts.st_size
