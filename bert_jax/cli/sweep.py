"""`sweep`: trains every run that a sweep file names, and compares them."""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

from bert_jax.cli import train
from bert_jax.cli.flags import (
    AT_LEAST_0,
    CONFIG,
    WORKDIR,
    Command,
    Flag,
    config_of,
    fields_of,
    parse,
    print_result,
    required,
)
from bert_jax.errors import BadInput

if TYPE_CHECKING:
    from bert_jax.sweep.runs import Run


def _run(values: flags.FlagValues, _: list[str]) -> int:
    workdir = required(COMMAND, values, 'workdir')
    if values.config is None:
        raise BadInput('--config', 'is missing', 'a sweep file', COMMAND.example)
    from bert_jax.sweep.command import sweep
    from bert_jax.sweep.runs import check_keys, expand

    fields = fields_of(values.config)
    check_keys(fields)
    base = parse(train.COMMAND, [f'--config={fields["base"]}'])[0].config
    runs = expand(fields, fields_of(base), workdir)
    for run in runs:
        _check_flags(run)
    status, as_json, text = sweep(runs, workdir, jobs=values.jobs, slurm=values.slurm)
    print_result(values, as_json, text, is_in_files=True)
    return status


def _check_flags(run: 'Run') -> None:
    """Raises BadInput if flags cannot express the config of a run, which its command is given as flags."""
    try:
        same = config_of(parse(train.COMMAND, run.flags)[0]) == run.config
    except BadInput:
        same = False
    if not same:
        found = f'the command line cannot express {run.varied}'
        raise BadInput(
            f'run {run.name}', found, 'numbers, strings, True and False', 'a base config for each of these values'
        )


COMMAND = Command(
    'sweep',
    _run,
    'train every run that a sweep file names, and rank them',
    'bert-jax sweep --config=sweeps/learning_rate.py --workdir=runs/learning_rate',
    (
        dataclasses.replace(CONFIG, meaning='sweep file: a path, or a shipped one, such as sweeps/learning_rate.py'),
        dataclasses.replace(WORKDIR, meaning='directory of the sweep; each run gets a directory in it'),
        Flag(
            'jobs',
            'maximum concurrent runs (default: 1 locally, all under SLURM); 0 only shows results',
            flags.DEFINE_integer,
            None,
            AT_LEAST_0,
        ),
        Flag('slurm', 'submit the runs as a SLURM job array, with these options of sbatch (may be empty: --slurm=)'),
    ),
)
