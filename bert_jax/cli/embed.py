"""`embed`: one vector per line of a text file."""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

from bert_jax.cli.devices import enable_compilation_cache
from bert_jax.cli.flags import MODEL, Command, Flag, print_result, required
from bert_jax.runtime.stopping import exit_on_signals

if TYPE_CHECKING:
    from bert_jax.pretrained.embed import Embedded


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    directory, text, output = (required(values, name) for name in ('model', 'input', 'output'))
    from bert_jax.pretrained.embed import check, embed

    check(text, output)
    from bert_jax.finetune.load import load_model
    from bert_jax.pretrained.sentences import read_settings

    settings = read_settings(directory)
    enable_compilation_cache()
    summary = embed(load_model(settings.directory), settings, text, output)
    print_result(values, dataclasses.asdict(summary), _describe(summary), is_in_files=True)
    return 0


def _describe(summary: 'Embedded') -> str:
    normalized = ', normalized' if summary.normalized else ''
    lines = [
        f'{summary.output}: {summary.lines:,} vectors of {summary.hidden_size:,} '
        f'({" and ".join(summary.pooling)}{normalized}), {summary.seconds:.1f} s'
    ]
    if summary.truncated:
        lines.append(f'{summary.truncated:,} lines were cut at {summary.max_length:,} tokens')
    if summary.invalid_utf8_replaced:
        lines.append(f'{summary.invalid_utf8_replaced:,} lines hold bytes that are not UTF-8; they were replaced')
    return '\n'.join(lines)


COMMAND = Command(
    'embed',
    _run,
    'one vector for each line of a file: the mean over its tokens, or what sentence-transformers is set to there',
    'python -m bert_jax embed --model=runs/demo/export --input=lines.txt --output=vectors.npy',
    (MODEL, Flag('input', 'text file; one vector per line'), Flag('output', '.npy file to write')),
)
