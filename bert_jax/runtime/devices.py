"""Which devices a command runs on, their memory, and their peak FLOP/s."""

import ctypes
import glob
import os
import resource

import jax

from bert_jax.errors import BadInput

NVIDIA_DEVICES = '/dev/nvidia[0-9]*'
_OTHER_ACCELERATORS = ('/dev/accel*', '/dev/vfio/[0-9]*', '/dev/kfd')  # TPUs, AMD GPUs


def select_platform(platform: str) -> None:
    """Makes jax use a platform ('' is the best there is); to be called before the first use of a device.

    Raises:
      BadInput: when an NVIDIA device is there and jax sees only the CPU, or when the platform is not there.
    """
    if platform:
        jax.config.update('jax_platforms', platform)
    chosen = platform or os.environ.get('JAX_PLATFORMS', '')
    if chosen == 'cpu' or not any(map(glob.glob, (NVIDIA_DEVICES, *_OTHER_ACCELERATORS))):
        _keep_freed_memory()
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise BadInput(
            'config.platform',
            f'is {platform!r}, and jax finds no such device ({error})',
            "'' or 'cpu'",
            'make install ACCELERATOR=cuda13 (or cuda12, tpu)',
        ) from error
    if found == 'cpu' and not chosen and glob.glob(NVIDIA_DEVICES):
        raise BadInput(
            'devices',
            'there is an NVIDIA device, but jax sees only the CPU',
            'jax with its CUDA plugin',
            "make install ACCELERATOR=cuda13, or pip install -e '.[cuda13]'; --config.platform=cpu trains on the CPU",
        )


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed, and reuse it, in one heap; to be called before the CPU's threads are there.

    XLA's CPU client allocates the temporary arrays of a program at every call and frees them. By default glibc gives
    them back to the kernel each time, and a quarter of a training step goes into mapping and clearing the same pages.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # another C library has none, and does as it does
    if mallopt is not None:
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)


# FLOP/s of one device in dense bfloat16 matmuls, from the makers' data sheets, by the names that `plan` gives devices.
PEAK_BF16_FLOPS = {
    'tpu-v4': 275e12,
    'tpu-v5e': 197e12,
    'tpu-v5p': 459e12,
    'tpu-v6e': 918e12,
    'a100': 312e12,
    'h100': 989e12,
    'h200': 989e12,
    'b200': 2250e12,
}
_NAME_OF_KIND = {  # by a part of jax's `device_kind`; the first that occurs counts
    'TPU v4': 'tpu-v4',
    'TPU v5 lite': 'tpu-v5e',
    'TPU v5e': 'tpu-v5e',
    'TPU v5': 'tpu-v5p',
    'TPU v6 lite': 'tpu-v6e',
    'TPU v6e': 'tpu-v6e',
    'A100': 'a100',
    'H100': 'h100',
    'H200': 'h200',
    'B200': 'b200',
}


def published_peak_flops() -> float | None:
    """Dense bfloat16 FLOP/s of all devices together, as published by their makers; None if unknown."""
    kind = jax.devices()[0].device_kind
    names = [name for part, name in _NAME_OF_KIND.items() if part in kind]
    return PEAK_BF16_FLOPS[names[0]] * jax.device_count() if names else None


def peak_memory() -> tuple[int, bool]:
    """(the most bytes held so far, whether they are this process's): a device's where jax tells, as on GPU and TPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use'], False
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, True
