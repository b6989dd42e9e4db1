"""`import`: a workdir from a model that was trained elsewhere."""

from absl import flags

from bert_jax.cli.flags import CONFIG, WORKDIR, Command, Flag, command_to_paste, config_of, print_result, required
from bert_jax.runtime.stopping import exit_on_signals


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    source, workdir = required(values, 'from'), required(values, 'workdir')
    data = config_of(values).data if values.config is not None else None
    from bert_jax.pretrained.convert import import_model

    summary = import_model(source, workdir, data)
    text = (
        f'Imported {source} to {workdir}: {summary["parameters"]:,} parameters, vocabulary {summary["vocab_size"]:,}\n'
        f'Next: {command_to_paste("export", workdir=workdir, output=f"{workdir}/export")}\n'
        f'      {command_to_paste("train", config="configs/continue.py", **{"config.init": workdir})} --workdir=…'
    )
    print_result(values, summary, text, is_in_files=True)
    return 0


COMMAND = Command(
    'import',
    _run,
    'converts a Hugging Face directory or a Google checkpoint into a workdir',
    'python -m bert_jax import --from=models/bert-base-uncased --workdir=runs/base',
    (
        Flag(
            'from', 'a Hugging Face directory, or one of an original checkpoint (bert_config.json, bert_model.ckpt.*)'
        ),
        WORKDIR,
        CONFIG,
    ),
)
