"""Start and end of the commands that run on devices: platform, processes, compilation cache, exit status."""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

from bert_jax.cli.flags import Flag, print_result
from bert_jax.config import Config
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.runtime.stopping import EXIT_RUN_AGAIN

if TYPE_CHECKING:
    from bert_jax.finetune.command import Summary
    from bert_jax.pretrain import Outcome

PROCESSES = (
    Flag(
        'distributed',
        'join the processes of a TPU pod or of Open MPI; --nodistributed ignores the environment and runs alone',
        flags.DEFINE_boolean,
        group='advanced',
    ),
    Flag('devices', 'expected number of devices across all hosts', flags.DEFINE_integer, group='advanced'),
    Flag('join_timeout', 'seconds to wait for the other hosts', flags.DEFINE_integer, 300, group='advanced'),
)


def join_processes(values: flags.FlagValues, config: Config | FinetuneConfig) -> None:
    """Joins the other processes of a run and checks the number of devices, as the flags `PROCESSES` say."""
    from bert_jax.runtime import processes

    processes.initialize(values.distributed, values.join_timeout, config.train.watchdog_seconds)
    select_platform(config)
    processes.check_devices(values.devices)


def finish(values: flags.FlagValues, outcome: 'Outcome | Summary', text: str) -> int:
    """Prints the result of a run on process 0; returns the exit status.

    Args:
      text: printed without `--json`, if the run is finished.
    """
    from bert_jax.runtime import processes

    if processes.is_process_zero():
        print_result(values, dataclasses.asdict(outcome), text if outcome.finished else '', is_in_files=True)
    return 0 if outcome.finished else EXIT_RUN_AGAIN


def select_platform(config: Config | FinetuneConfig) -> None:
    """Makes jax use the platform that the config names, and turns on the compilation cache."""
    from bert_jax.runtime import devices

    devices.select_platform(config.platform)
    enable_compilation_cache()


def enable_compilation_cache() -> None:
    """Turns on the compilation cache, so that the next start compiles less."""
    from bert_jax.runtime import compilation_cache

    compilation_cache.enable_compilation_cache()
