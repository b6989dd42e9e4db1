"""Runs tests on eight simulated CPU devices, with a compilation cache that they share."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import QUICK_TO_COMPILE

_MAX_COMPILED = 2 * 2**30  # bytes of the compilation cache
_ROOM = 4 * 2**30  # bytes that tests may need for files at a time
_MEMORY = Path('/dev/shm')  # in memory, where syncing a file takes no time
if not (os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM):
    _MEMORY = None

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} {QUICK_TO_COMPILE} --xla_force_host_platform_device_count=8'
)
if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers inherit it from the process that starts them
    compiled = Path(__file__).parents[1] / '.pytest_cache' / 'compiled'
    if sum(path.stat().st_size for path in compiled.glob('*')) > _MAX_COMPILED:
        shutil.rmtree(compiled)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(compiled)
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'  # tests mostly compile, a third of it in LLVM

os.environ['OMP_NUM_THREADS'] = '1'  # two test processes share the cores, and waiting PyTorch threads spin

_PROCESSES = 'processes'
_MAY_START_PROCESSES = (_PROCESSES, 'slurm', 'plan', 'compat', 'soak')  # marks
_running: list[pytest.Item] = []  # the test that is running


def _check_mark(event: str, arguments: tuple) -> None:
    """Fails a test that starts a process without its mark, which `make test-fast` would run."""
    if (
        event != 'subprocess.Popen' or not _running or arguments[0] == 'fc-list'
    ):  # matplotlib's list of fonts, made once
        return
    if not any(map(_running[0].get_closest_marker, _MAY_START_PROCESSES)):
        raise AssertionError(f'{_running[0].nodeid} starts {arguments[1]}: it needs the mark `{_PROCESSES}`')


sys.addaudithook(_check_mark)


def pytest_configure() -> None:
    if _MEMORY:
        os.environ.setdefault('PYTEST_DEBUG_TEMPROOT', str(_MEMORY))
    if importlib.util.find_spec('torch') is None and 'WITHOUT_TORCH' not in os.environ:
        raise pytest.UsageError('PyTorch is missing: `make test` installs it; WITHOUT_TORCH=1 skips what needs it')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that start processes first: they take longest, and would keep one worker waiting at the end."""
    long = {item.path for item in items if item.get_closest_marker(_PROCESSES)}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _running[:] = [item]
    try:
        return (yield)
    finally:
        _running.clear()


@pytest.fixture(scope='session')
def shared_programs() -> Iterator[None]:
    """Lets runs in this process that have the same step share its compiled program.

    What a restart compiles again is tested where runs are processes.
    """
    from bert_jax import pretrain
    from bert_jax.finetune import seed
    from bert_jax.train.program import build_program
    from tests.support.configs import sharing_programs

    shared = sharing_programs(build_program)
    with pytest.MonkeyPatch.context() as patch:
        for module in (pretrain, seed):
            patch.setattr(module, 'build_program', shared)
        yield


@pytest.fixture(scope='module')
def one_device(shared_programs: None) -> Iterator[None]:
    """Gives a module one device, for which programs compile faster than for eight."""
    import jax

    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda *_: list(first))
        yield
