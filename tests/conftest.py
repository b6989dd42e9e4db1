"""Tests run on eight simulated CPU devices; what one of them compiled, in whatever process, the others do not again."""

import atexit
import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
if 'PYTEST_XDIST_WORKER' not in os.environ:  # the workers have it from the process that starts them
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='bert_jax-compiled-')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'  # compiling takes most of the time, and a third of that is LLVM's

os.environ['OMP_NUM_THREADS'] = '1'  # two processes of tests share the cores; PyTorch's threads would wait by spinning

# Files that take a minute or so: handed out first, or one process of tests waits for the other at the end.
_LONG = (
    'launch/test_local.py',
    'test_pretrain.py',
    'runtime/test_watchdog.py',
    'model/test_parity.py',
    'train/test_step.py',
    'train/test_exact.py',
    'sweep/test_sweep.py',
    'train/test_memory.py',
    'plan/test_bench.py',
    'runtime/test_compilation_cache.py',
    'finetune/test_finetune.py',
)


def pytest_collection_modifyitems(items: list) -> None:
    """Long files first, in this order; the others as they were."""

    def rank(item: object) -> int:
        return next(
            (number for number, name in enumerate(_LONG) if str(item.path).endswith(f'tests/{name}')), len(_LONG)
        )

    items.sort(key=rank)
