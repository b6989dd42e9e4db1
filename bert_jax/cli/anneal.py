"""`anneal`: branches a decay of the learning rate off a run."""

import dataclasses

from absl import flags

from bert_jax.cli.devices import PROCESSES, finish, join_processes
from bert_jax.cli.flags import (
    AT_LEAST_0,
    AT_LEAST_1,
    CONFIG,
    STEP,
    WORKDIR_OR_STEP,
    Command,
    Flag,
    command_to_paste,
    config_of_run,
    required,
    workdir_and_step,
)
from bert_jax.config.anneal import Decay
from bert_jax.runtime.stopping import StopRequest


def _run(values: flags.FlagValues, _: list[str]) -> int:
    (workdir, step), output = workdir_and_step(COMMAND, values), required(COMMAND, values, 'output')
    decay = Decay(values.steps or 0, values.tokens or 0.0, values.decay, values.final_fraction)
    with StopRequest() as stop:
        from bert_jax.pretrained.branch import create_branch, plan_branch

        step, config = plan_branch(workdir, step, output, config_of_run(values, workdir), decay)
        join_processes(values, config)
        from bert_jax.pretrain import pretrain

        create_branch(workdir, step, output, config)
        outcome = pretrain(config, output, stop)
    next_steps = (
        f'Next: {command_to_paste("evaluate", workdir=output)}\n'
        f'      {command_to_paste("export", workdir=output, output=f"{output}/export")}'
    )
    return finish(values, outcome, next_steps)


COMMAND = Command(
    'anneal',
    _run,
    'branch off a run and let its learning rate fall: a new workdir, which `train` resumes',
    'bert-jax anneal --workdir=runs/mine@80000 --tokens=1e9 --output=runs/annealed',
    (
        WORKDIR_OR_STEP,
        Flag('output', 'workdir to create', group='essential'),
        Flag('tokens', 'length of the decay in tokens, padding included', flags.DEFINE_float, None, AT_LEAST_1),
        Flag('steps', 'length of the decay in steps', flags.DEFINE_integer, None, AT_LEAST_1),
        STEP,
        Flag(
            'decay', 'curve on which the learning rate falls: 1-sqrt, linear, cosine or inverse_sqrt', default='1-sqrt'
        ),
        Flag('final_fraction', 'share of the peak that it ends at', flags.DEFINE_float, 0.0, AT_LEAST_0),
        dataclasses.replace(CONFIG, meaning="config file to take instead of the run's config", group='advanced'),
        *PROCESSES,
    ),
    overrides_run=True,
)
