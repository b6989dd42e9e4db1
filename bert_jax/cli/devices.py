"""What commands do about processes and devices before they compute."""

from absl import flags

from bert_jax.cli.flags import Flag
from bert_jax.config import Config
from bert_jax.config.finetuning import FinetuneConfig

PROCESSES = (
    Flag(
        'distributed',
        'join the processes of a TPU pod or of Open MPI; --nodistributed: do not join, whatever the environment says',
        flags.DEFINE_boolean,
    ),
    Flag('devices', 'expected number of devices across all hosts', flags.DEFINE_integer),
    Flag('join_timeout', 'seconds to wait for the other hosts', flags.DEFINE_integer, 300),
)


def join_processes(values: flags.FlagValues, config: Config | FinetuneConfig) -> None:
    """Joins the other processes of a run and checks that all expected devices are there; see `PROCESSES`."""
    from bert_jax.runtime import processes

    processes.initialize(values.distributed, values.join_timeout, config.train.watchdog_seconds)
    select_platform(config)
    processes.check_devices(values.devices)


def select_platform(config: Config | FinetuneConfig) -> None:
    """Makes jax use the platform that the config names, and keep what it compiles."""
    from bert_jax.runtime import devices

    devices.select_platform(config.platform)
    keep_programs()


def keep_programs() -> None:
    """Turns on the cache of compiled programs."""
    from bert_jax.runtime import compilation_cache

    compilation_cache.keep_programs()
