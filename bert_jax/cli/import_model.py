"""`import`: creates a workdir from a model that was trained elsewhere."""

import dataclasses

from absl import flags

from bert_jax.cli.flags import CONFIG, WORKDIR, Command, Flag, command_to_paste, config_of, print_result, required
from bert_jax.config import FAMILIES
from bert_jax.runtime.stopping import exit_on_signals


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    source, workdir = required(COMMAND, values, 'from'), required(COMMAND, values, 'workdir')
    data = config_of(values).data if values.config is not None else None
    from bert_jax.pretrained.convert import import_model

    summary = import_model(source, workdir, data)
    overrides = {'config.init': workdir}
    if not FAMILIES[summary['family']].LEARNS_PAIRS:
        overrides['config.data.pairing'] = 'none'
    text = (
        f'Imported {source} to {workdir}: {summary["parameters"]:,} parameters, '
        f'vocabulary of {summary["vocab_size"]:,} tokens\n'
        f'Next: {command_to_paste("export", workdir=workdir, output=f"{workdir}/export")}\n'
        f'      {command_to_paste("train", config="continue.py", **overrides)} --workdir=…'
    )
    print_result(values, summary, text, is_in_files=True)
    return 0


COMMAND = Command(
    'import',
    _run,
    'convert a Hugging Face directory or a Google checkpoint into a workdir',
    'bert-jax import --from=models/bert-base-uncased --workdir=runs/base',
    (
        Flag(
            'from',
            'Hugging Face directory, or one with an original checkpoint (bert_config.json, bert_model.ckpt.*)',
            group='essential',
        ),
        dataclasses.replace(WORKDIR, meaning='directory to write'),
        dataclasses.replace(
            CONFIG, meaning='config file whose data section `evaluate` will use for this model', group='advanced'
        ),
    ),
)
