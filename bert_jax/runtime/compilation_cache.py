"""The cache of compiled programs, in a directory that nobody else can write to: cached programs are code that runs."""

import hashlib
import os
import pathlib
import platform
import stat
from typing import Any

import jax

from bert_jax.console import say
from bert_jax.runtime.caches import cache_directory

_MAX_BYTES = 4 * 2**30
_MIN_COMPILE_SECONDS = 0.3  # programs that compile faster are not cached


def enable_compilation_cache() -> None:
    """Makes jax cache compiled programs in ~/.cache/bert_jax/programs; call this before the first compilation.

    `JAX_COMPILATION_CACHE_DIR` names another directory, `JAX_ENABLE_COMPILATION_CACHE=false` disables the cache. If the
    directory cannot be created or is not safe, that is reported and the cache stays disabled.
    """
    settings: Any = jax.config  # its fields are added when jax is imported
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    try:
        cache = cache_directory().resolve()
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory = private_directory(cache / 'bert_jax' / 'programs' / _processor_hash(), cache.parent)
        _remove_oldest(directory)
    except OSError as error:
        reason = error.strerror if error.strerror and not error.filename else error
        say(f'Compilation cache disabled: {reason}')
        return
    jax.config.update('jax_compilation_cache_dir', str(directory))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_COMPILE_SECONDS)


def _processor_hash() -> str:
    """Returns a name for this kind of processor: programs fit one kind, but a home directory may serve several."""
    return hashlib.sha256(_processor().encode()).hexdigest()[:16]


def _processor() -> str:
    """Returns the properties of this machine's processor that compiled code depends on."""
    properties = [platform.machine()]
    cpuinfo = pathlib.Path('/proc/cpuinfo')
    if cpuinfo.exists():
        names = ('model name', 'flags', 'Features', 'CPU part')
        lines = cpuinfo.read_text().split('\n\n')[0].splitlines()
        properties += [line for line in lines if line.partition('\t')[0].strip() in names]
    return '\n'.join(properties)


def private_directory(path: pathlib.Path, home: pathlib.Path) -> pathlib.Path:
    """Returns the directory, after creating every missing level below `home`.

    All levels are checked, because anyone who can write to one of them can replace the next.

    Raises:
      PermissionError: if a level belongs to another user, or others can write to it.
      OSError: if a level cannot be created.
    """
    parts = path.relative_to(home).parts
    for depth in range(len(parts)):
        level = home.joinpath(*parts[: depth + 1])
        level.mkdir(exist_ok=True, mode=0o700)
        info = level.lstat()
        if not stat.S_ISDIR(info.st_mode):
            raise PermissionError(f'{level} is a link or a file; expected a directory of your own')
        if info.st_uid != os.geteuid():
            raise PermissionError(f'{level} belongs to user {info.st_uid}, not to you ({os.geteuid()})')
        if info.st_mode & 0o022:
            raise PermissionError(f'{level} is writable by others (fix: chmod go-w {level})')
    return path


def _remove_oldest(directory: pathlib.Path) -> None:
    """Deletes the programs that were not used for longest, until a few gigabytes are left."""
    files = [(path.stat(), path) for path in directory.iterdir() if path.is_file()]
    num_bytes = sum(info.st_size for info, _ in files)
    for info, path in sorted(files, key=lambda item: max(item[0].st_atime, item[0].st_mtime)):
        if num_bytes <= _MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        num_bytes -= info.st_size
