"""`sweep`: every run that a sweep file names."""

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
    workdir = required(values, 'workdir')
    if values.config is None:
        raise BadInput('--config', 'is missing', 'a sweep file', '--config=configs/sweeps/learning_rate.py')
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
    """Raises BadInput when a run's command would not give its config: not every value can be written on one."""
    try:
        same = config_of(parse(train.COMMAND, run.flags)[0]) == run.config
    except BadInput:
        same = False
    if not same:
        found = f'the command line cannot express {run.varied}'
        raise BadInput(f'run {run.name}', found, 'numbers, strings, True and False', 'a sweep for each base config')


COMMAND = Command(
    'sweep',
    _run,
    'every run that a sweep file names, then a table and a picture of all',
    'python -m bert_jax sweep --config=configs/sweeps/learning_rate.py --workdir=runs/learning_rate',
    (
        CONFIG,
        WORKDIR,
        Flag(
            'jobs',
            'maximum concurrent runs (default: 1 locally, all under SLURM); 0 only shows results',
            flags.DEFINE_integer,
            None,
            AT_LEAST_0,
        ),
        Flag('slurm', "options of sbatch: submit the runs as a SLURM array ('' for none)"),
    ),
)
