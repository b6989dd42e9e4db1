"""`train`: pretrains, from the start or from the newest checkpoint."""

from absl import flags

from bert_jax.cli.devices import PROCESSES, finish, join_processes
from bert_jax.cli.flags import (
    CONFIG,
    WORKDIR,
    Command,
    Flag,
    check_names_no_step,
    command_to_paste,
    config_of_run,
    required,
)
from bert_jax.runtime.stopping import StopRequest


def _run(values: flags.FlagValues, _: list[str]) -> int:
    workdir = required(COMMAND, values, 'workdir')
    check_names_no_step(COMMAND, workdir)
    with StopRequest() as stop:
        config = config_of_run(values, workdir)
        join_processes(values, config)
        from bert_jax.pretrain import pretrain

        outcome = pretrain(config, workdir, stop, values.allow_change)
    next_steps = (
        f'Next: {command_to_paste("evaluate", workdir=workdir)}\n'
        f'      {command_to_paste("export", workdir=workdir, output=f"{workdir}/export")}'
    )
    return finish(values, outcome, next_steps)


COMMAND = Command(
    'train',
    _run,
    'pretrain a model, or resume the run in the workdir',
    'bert-jax train --config=demo.py --workdir=runs/demo',
    (
        CONFIG,
        WORKDIR,
        Flag(
            'allow_change',
            'comma-separated config fields that may differ from the original run; config.json records the change',
            flags.DEFINE_list,
            [],
            group='advanced',
        ),
        *PROCESSES,
    ),
)
