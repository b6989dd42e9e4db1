"""`embed`: writes one vector per line of a text file."""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

from bert_jax.cli.devices import enable_compilation_cache
from bert_jax.cli.flags import MODEL, Command, Flag, print_result, required
from bert_jax.console import duration, quantity
from bert_jax.runtime.stopping import exit_on_signals

if TYPE_CHECKING:
    from bert_jax.pretrained.embed import Embedded


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    directory, text, output = (required(COMMAND, values, name) for name in ('model', 'input', 'output'))
    from bert_jax.pretrained.embed import check, embed

    check(text, output)
    from bert_jax.finetune.load import load_model
    from bert_jax.pretrained.sentences import read_settings

    settings = read_settings(directory)
    enable_compilation_cache()
    summary = embed(load_model(settings.directory), settings, text, output, values.dims)
    print_result(values, dataclasses.asdict(summary), _describe(summary), is_in_files=True)
    return 0


def _describe(summary: 'Embedded') -> str:
    normalized = ', normalized' if summary.normalized else ''
    lines = [
        f'{summary.output}: {quantity(summary.lines, "vector")} of {summary.hidden_size:,} numbers '
        f'({" and ".join(summary.pooling)}{normalized}), {duration(summary.seconds)}'
    ]
    if summary.truncated:
        lines.append(f'{quantity(summary.truncated, "line")} cut at {summary.max_length:,} tokens')
    if summary.invalid_utf8_replaced:
        lines.append(f'{quantity(summary.invalid_utf8_replaced, "line")} with invalid UTF-8, which was replaced')
    return '\n'.join(lines)


COMMAND = Command(
    'embed',
    _run,
    'write one vector per line of a text file',
    'bert-jax embed --model=runs/demo/export --input=lines.txt --output=vectors.npy',
    (
        MODEL,
        Flag('input', 'UTF-8 text file with one text per line', group='essential'),
        Flag(
            'output',
            '.npy file to write: per line the mean over its tokens, or what the sentence-transformers files of the '
            'model configure',
            group='essential',
        ),
        Flag(
            'dims',
            'number of leading dims of a vector to write, normalized again if the model normalizes',
            flags.DEFINE_integer,
        ),
    ),
)
