"""`export`: writes a run as a Hugging Face model directory."""

import dataclasses
from typing import Any

from absl import flags

from bert_jax.cli.devices import enable_compilation_cache
from bert_jax.cli.flags import (
    AVERAGE,
    CONFIG,
    STEP,
    WORKDIR_OR_STEP,
    Command,
    Flag,
    averaged_checkpoints,
    command_to_paste,
    config_of,
    fields_of,
    print_result,
    required,
    workdir_and_step,
)
from bert_jax.errors import BadInput
from bert_jax.runtime.stopping import exit_on_signals


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    output, average = required(COMMAND, values, 'output'), averaged_checkpoints(COMMAND, values)
    workdir, step = (average[0].workdir, None) if average else workdir_and_step(COMMAND, values)
    from bert_jax.finetune.workdirs import seeds_of
    from bert_jax.pretrained.average import describe_average
    from bert_jax.pretrained.export import export
    from bert_jax.pretrained.hub import MLM_HEAD, PREDICTION_HEAD

    enable_compilation_cache()
    is_finetuned = not average and bool(seeds_of(workdir))
    if values.layout not in ('', 'electra'):
        raise BadInput('--layout', f'is {values.layout!r}', "'electra', or nothing", '--layout=electra')
    if values.layout and (average or is_finetuned):
        raise BadInput('--layout', 'is for one checkpoint of pretraining', 'no --average, and no fine-tuned run')
    if is_finetuned:
        return _export_finetuned(values, workdir, step, output)
    card = config_of(values).card if values.config is not None else None
    if values.layout:
        from bert_jax.pretrained.electra import export_electra

        proof = export_electra(workdir, output, step, card)
        print_result(values, proof, _describe(proof, output, f'step {proof["step"]}'), is_in_files=True)
        return 0
    proof = export(workdir, output, step, card, average)
    exported = f'the average of {describe_average(average)}' if average else f'step {proof["step"]}'
    exported += f', moving average of the weights (train.ema={proof["ema"]})' if 'ema' in proof else ''
    notes = [_describe(proof, output, exported)]
    if untrained := proof['untrained_heads']:
        notes.append(f'Left out because untrained: {", ".join(untrained)}.')
    if {MLM_HEAD, PREDICTION_HEAD} & {*untrained}:
        notes.append(f'Next: {command_to_paste("embed", model=output, input="lines.txt", output="vectors.npy")}')
    else:
        notes.append(f'Next: {command_to_paste("fill-mask", model=output)} "the [MASK] of the file"')
        notes.append(f"      transformers.pipeline('fill-mask', model={output!r})")
    print_result(values, proof, '\n'.join(notes), is_in_files=True)
    return 0


def _export_finetuned(values: flags.FlagValues, workdir: str, step: int | None, output: str) -> int:
    from bert_jax.config import finetuning
    from bert_jax.finetune.export import PIPELINES, export

    card = finetuning.resolve(fields_of(values.config)).card if values.config is not None else None
    proof = export(workdir, output, step, card)
    pipeline = f"transformers.pipeline('{PIPELINES[proof['kind']]}', model={output!r})"
    next_step = f'Next: {command_to_paste("predict", model=output, input="lines.txt")}\n      {pipeline}'
    if proof['kind'] == 'embedding':
        embed = command_to_paste('embed', model=output, input='lines.txt', output='vectors.npy')
        next_step = f'Next: {embed}\n      SentenceTransformer({output!r}).encode'
    described = _describe(proof, output, f'step {proof["step"]} of {proof["workdir"]}')
    print_result(values, proof, f'{described}\n{next_step}', is_in_files=True)
    return 0


def _describe(proof: dict[str, Any], output: str, exported: str) -> str:
    return (
        f'Exported {exported} to {output}: {proof["logits_compared"]:,} logits compared with '
        f'{proof["compared_with"]}, largest difference {proof["largest_difference"]:.1e}.'
    )


COMMAND = Command(
    'export',
    _run,
    'write a Hugging Face model directory, after comparing its logits with those of the run',
    'bert-jax export --workdir=runs/demo --output=runs/demo/export',
    (
        WORKDIR_OR_STEP,
        Flag('output', 'directory to write', group='essential'),
        STEP,
        AVERAGE,
        Flag(
            'layout',
            'electra: write a BERT that was trained with objective.name=rtd as ElectraForPreTraining, with its '
            'detector (default: as its family)',
            default='',
        ),
        dataclasses.replace(
            CONFIG, meaning='config file whose card section is used for the model card', group='advanced'
        ),
    ),
)
