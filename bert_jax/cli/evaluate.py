"""`evaluate`: measures a pretrained or a fine-tuned run, or the vectors of a model."""

import dataclasses
import os

from absl import flags

from bert_jax.cli import evaluate_embeddings
from bert_jax.cli.devices import select_platform
from bert_jax.cli.flags import (
    AT_LEAST_0,
    AVERAGE,
    CONFIG,
    STEP,
    WORKDIR_OR_STEP,
    Command,
    Flag,
    averaged_checkpoints,
    config_of,
    config_of_run,
    print_result,
    workdir_and_step,
)
from bert_jax.errors import BadInput
from bert_jax.runtime.stopping import exit_on_signals


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    if evaluate_embeddings.is_requested(values):
        return evaluate_embeddings.run(COMMAND, values)
    from bert_jax.finetune.workdirs import seeds_of
    from bert_jax.workdir.result import check_output

    average, output = averaged_checkpoints(COMMAND, values), values.output or ''
    workdir, step = (average[0].workdir, None) if average else workdir_and_step(COMMAND, values)
    check_output(output)
    if seeds := () if average else seeds_of(workdir):
        return _evaluate_finetuned(values, workdir, step, seeds[0])
    select_platform(config_of_run(values, workdir))
    from bert_jax.evaluation.evaluate import describe, evaluate

    result = evaluate(
        workdir,
        step,
        source=values.source or '',
        sample=values.sample,
        output=output,
        config=config_of(values) if values.config is not None else None,
        workers=len(os.sched_getaffinity(0)),
        average=average,
    )
    print_result(values, result, describe(result))
    return 0


def _evaluate_finetuned(values: flags.FlagValues, workdir: str, step: int | None, seed: str) -> int:
    from bert_jax.finetune.workdirs import read_run

    for name in ('source', 'config'):
        if values[name].value is not None:
            fix = f'bert-jax predict --model={workdir} --input=FILE, for other examples'
            raise BadInput(f'--{name}', 'does not apply to a fine-tuned run', f'no --{name}', fix)
    select_platform(read_run(seed))
    from bert_jax.finetune.command import describe
    from bert_jax.finetune.evaluate import as_json, evaluate

    summary = evaluate(workdir, step, output=values.output or '')
    print_result(values, as_json(summary), describe(summary))
    return 0


COMMAND = Command(
    'evaluate',
    _run,
    'measure loss and accuracy on held-out data, or retrieval, compared with baselines',
    'bert-jax evaluate --workdir=runs/demo',
    (
        WORKDIR_OR_STEP,
        STEP,
        AVERAGE,
        Flag(
            'source',
            'text to evaluate on instead, as data.source names it: text:FILES, jsonl:FILES, csv:FILES, hf:DIR, …',
        ),
        Flag('output', 'JSON file to write the result to (default: evaluation….json in the workdir; none for vectors)'),
        Flag(
            'sample',
            'text windows for the masked-word metric (1 in 8 also for pseudo-perplexity); 0 disables both',
            flags.DEFINE_integer,
            512,
            AT_LEAST_0,
        ),
        *evaluate_embeddings.FLAGS,
        dataclasses.replace(
            CONFIG,
            meaning='config file whose mesh and data.local_copy are used instead of those of the run',
            group='advanced',
        ),
    ),
)
