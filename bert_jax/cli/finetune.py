"""`finetune`: learns a task from labelled examples, with one or several seeds."""

from absl import flags

from bert_jax.cli.devices import PROCESSES, finish, join_processes
from bert_jax.cli.flags import (
    AT_LEAST_1,
    CONFIG,
    WORKDIR,
    Command,
    Flag,
    check_names_no_step,
    command_to_paste,
    fields_of,
    required,
)
from bert_jax.config.finetuning import FinetuneConfig, resolve
from bert_jax.runtime.stopping import StopRequest


def _run(values: flags.FlagValues, _: list[str]) -> int:
    workdir = required(COMMAND, values, 'workdir')
    check_names_no_step(COMMAND, workdir)
    with StopRequest() as stop:
        from bert_jax.finetune.workdirs import read_plan

        config, num_seeds = (resolve(fields_of(values.config)), 1) if values.config is not None else read_plan(workdir)
        join_processes(values, config)
        from bert_jax.finetune.command import describe, finetune

        summary = finetune(config, workdir, values.seeds or num_seeds, stop)
    export = command_to_paste('export', workdir=workdir, output=f'{workdir}/export')
    return finish(values, summary, f'{describe(summary)}\nNext: {export}')


COMMAND = Command(
    'finetune',
    _run,
    'learn a task from labelled examples (classes, numbers, tags or spans), or resume',
    'bert-jax finetune --config=finetune/glue.py:sst2 --config.task.directory=glue/SST-2 --config.init=models/mine '
    '--workdir=runs/sst2 --seeds=5',
    (
        CONFIG,
        WORKDIR,
        Flag(
            'seeds',
            'number of seeds to train and summarize (default: as before, or 1)',
            flags.DEFINE_integer,
            None,
            AT_LEAST_1,
        ),
        *PROCESSES,
    ),
    config_type=FinetuneConfig,
)
