"""Which devices a command runs on."""

import glob
import os

import jax

from bert_jax.errors import BadInput

NVIDIA_DEVICES = '/dev/nvidia[0-9]*'


def select_platform(platform: str) -> None:
    """Makes jax use a platform ('' is the best there is); to be called before the first use of a device.

    Raises:
      BadInput: when an NVIDIA device is there and jax sees only the CPU, or when the platform is not there.
    """
    if platform:
        jax.config.update('jax_platforms', platform)
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise BadInput(
            'config.platform',
            f'is {platform!r}, and jax finds no such device ({error})',
            "'' or 'cpu'",
            'make install ACCELERATOR=cuda13 (or cuda12, tpu)',
        ) from error
    chosen = platform or os.environ.get('JAX_PLATFORMS', '')
    if found == 'cpu' and not chosen and glob.glob(NVIDIA_DEVICES):
        raise BadInput(
            'devices',
            'there is an NVIDIA device, but jax sees only the CPU',
            'jax with its CUDA plugin',
            "make install ACCELERATOR=cuda13, or pip install -e '.[cuda13]'; --config.platform=cpu trains on the CPU",
        )
