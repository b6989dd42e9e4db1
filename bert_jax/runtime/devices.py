"""The devices that a command runs on, their memory, and their peak FLOP/s."""

import ctypes
import glob
import os
import resource

import jax

from bert_jax.errors import BadInput

NVIDIA_DEVICES = '/dev/nvidia[0-9]*'
_OTHER_ACCELERATORS = ('/dev/accel*', '/dev/vfio/[0-9]*', '/dev/kfd')  # TPUs, AMD GPUs


def select_platform(platform: str) -> None:
    """Makes jax use a platform ('': the best available one); call this before the first use of a device.

    Raises:
      BadInput: if the platform has no devices, or if there is an NVIDIA device but jax sees only the CPU.
    """
    if platform:
        jax.config.update('jax_platforms', platform)
    chosen = platform or os.environ.get('JAX_PLATFORMS', '')
    if chosen == 'cpu' or not any(map(glob.glob, (NVIDIA_DEVICES, *_OTHER_ACCELERATORS))):
        _keep_freed_memory()
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        raise BadInput(
            'config.platform',
            f'is {platform!r}, but jax finds no such device ({error})',
            "'' or 'cpu'",
            'make install ACCELERATOR=cuda13 (or cuda12, tpu)',
        ) from error
    if backend == 'cpu' and not chosen and glob.glob(NVIDIA_DEVICES):
        raise BadInput(
            'devices',
            'this machine has an NVIDIA device, but jax sees only the CPU',
            'jax with its CUDA plugin',
            "make install ACCELERATOR=cuda13, or pip install -e '.[cuda13]'; --config.platform=cpu trains on the CPU",
        )


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory in one heap and reuse it; call this before the CPU's threads are started.

    XLA's CPU client allocates and frees the temporary arrays of a program at every call. By default glibc returns them
    to the kernel each time, and a quarter of a training step goes into mapping and clearing the same pages.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # other C libraries have none
    if mallopt is not None:
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)


# FLOP/s of one device in dense bfloat16 matmuls, from the vendors' data sheets, by the names that `plan` uses.
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
_NAME_OF_KIND = {  # by a part of jax's `device_kind`; the first match counts
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


def device_name() -> str | None:
    """Returns the name that `plan` uses for the devices of this process; None for devices that it does not know."""
    kind = jax.devices()[0].device_kind
    return next((name for part, name in _NAME_OF_KIND.items() if part in kind), None)


def published_peak_flops() -> float | None:
    """Returns the dense bfloat16 FLOP/s of all devices together, as published by their vendor; None if unknown."""
    name = device_name()
    return None if name is None else PEAK_BF16_FLOPS[name] * jax.device_count()


def peak_memory() -> tuple[int, bool]:
    """Returns (peak bytes, whether they are those of this process). On GPU and TPU they are those of a device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use'], False
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, True
