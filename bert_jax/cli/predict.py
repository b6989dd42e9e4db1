"""`predict`: the predictions of a fine-tuned model."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from bert_jax import console
from bert_jax.activity import progress
from bert_jax.cli.devices import enable_compilation_cache
from bert_jax.cli.flags import MODEL, Command, Flag, print_result, required
from bert_jax.console import duration, quantity
from bert_jax.errors import BadInput
from bert_jax.files import new_file
from bert_jax.runtime.stopping import exit_on_signals

if TYPE_CHECKING:
    from tqdm import tqdm

    from bert_jax.finetune.predict import FineTuned


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    name, source = required(COMMAND, values, 'model'), required(COMMAND, values, 'input')
    from bert_jax.finetune.inputs import as_tsv, check_source, describe
    from bert_jax.finetune.load import load_model
    from bert_jax.finetune.predict import FineTuned
    from bert_jax.finetune.splits import json_lines
    from bert_jax.workdir.result import check_output

    check_source(source)
    check_output(values.output or '')
    enable_compilation_cache()
    trained = load_model(name)
    if not isinstance(trained, FineTuned):
        fix = f'bert-jax finetune --config=finetune/glue.py:sst2 --config.init={name} --workdir=…'
        raise BadInput(f'--model={name}', 'is not fine-tuned: it has no task head', 'a fine-tuned model', fix)
    if trained.task.kind == 'embedding':
        fix = f'bert-jax embed --model={name} --input={source} --output=vectors.npy'
        raise BadInput(f'--model={name}', 'is an embedding model', 'a model that predicts', fix)
    start, counts = time.monotonic(), Counter()
    results = _results(values, trained, source, counts)
    with progress(lambda: f'predicting, {counts["examples"]:,} examples done', unit=' examples') as bar:
        results = _counting(results, bar)
        if values.output:
            with new_file(values.output) as temporary, temporary.open('w', encoding='utf-8') as file:
                file.writelines(json_lines([result]) for result in results)
        elif values.json:
            print_result(values, {'results': list(results)}, '')
        else:
            for result in results:
                if lost := console.print_text(as_tsv(result, trained.task)):
                    raise BadInput('standard output', f'could not be written ({lost})', '--output=FILE')
                if not console.output_is_read():  # `| head` has exited
                    break
    num_examples, seconds = counts.pop('examples', 0), round(time.monotonic() - start, 3)
    for line in describe(counts):
        console.say(line)
    if values.output:
        summary = {'output': values.output, 'examples': num_examples, 'seconds': seconds, 'counts': dict(+counts)}
        text = f'{values.output}: {quantity(num_examples, "example")}, {duration(seconds)}'
        print_result(values, summary, text, is_in_files=True)
    return 0


def _counting(results: Iterable[dict[str, Any]], bar: 'tqdm') -> Iterator[dict[str, Any]]:
    for result in results:
        yield result
        bar.update()


def _results(values: flags.FlagValues, trained: 'FineTuned', source: str, counts: Counter) -> Iterator[dict[str, Any]]:
    """Yields one prediction per example, with the id of the example if it has one."""
    import dataclasses

    from bert_jax.finetune.inputs import read_examples
    from bert_jax.finetune.predict import columns_of, predict_stream

    task = trained.task
    named = {'text': values.text or task.text, 'text_pair': values.text_pair or task.text_pair}
    trained = dataclasses.replace(trained, task=dataclasses.replace(task, directory='', **named))
    records = read_examples(source, columns_of(trained), trained.task, counts=counts)
    for record, result in predict_stream(trained, records, counts):
        counts['examples'] += 1
        yield ({'id': record.fields['id']} if 'id' in record.fields else {}) | result


COMMAND = Command(
    'predict',
    _run,
    'predict classes, numbers, tags or answers with a fine-tuned model',
    'bert-jax predict --model=runs/sst2 --input=lines.txt --output=predictions.jsonl',
    (
        MODEL,
        Flag(
            'input',
            'file with one example per line (a tab between the two texts of a pair), JSON lines (FILE.jsonl), '
            'FORMAT:FILE as in config.task, or - for standard input',
            group='essential',
        ),
        Flag('output', 'file to write, one JSON object per line (default: text on standard output)'),
        Flag('text', 'column of the text or words (default: as in training)'),
        Flag('text_pair', 'column of the second text of a pair (default: as in training)'),
    ),
)
