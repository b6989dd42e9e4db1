"""`embed`: writes one vector per text of a file."""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

from bert_jax.cli.devices import enable_compilation_cache
from bert_jax.cli.flags import MODEL, Command, Flag, print_result, required
from bert_jax.console import duration, quantity
from bert_jax.errors import BadInput
from bert_jax.runtime.stopping import exit_on_signals

if TYPE_CHECKING:
    from bert_jax.pretrained.embed import Embedded
    from bert_jax.pretrained.sentences import SentenceSettings

_DTYPES = ('float32', 'bfloat16')


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    directory, path, output = (required(COMMAND, values, name) for name in ('model', 'input', 'output'))
    if values.dtype not in _DTYPES:
        raise BadInput(f'--dtype={values.dtype}', 'is not a dtype to compute in', ' or '.join(_DTYPES))
    from bert_jax.pretrained.embed import Source, check, embed

    source = Source(path, values.text_field, values.id_field)
    texts = check(source, output)
    from bert_jax.finetune.load import load_model
    from bert_jax.finetune.sentences import read_settings
    from bert_jax.runtime.devices import select_platform

    settings = _with_prompt(read_settings(directory), directory, values.prompt, values.prompt_name)
    select_platform('')
    enable_compilation_cache()
    model = load_model(settings.directory)
    summary = embed(model, settings, source, texts, output, dims=values.dims, dtype=values.dtype)
    print_result(values, dataclasses.asdict(summary), _describe(summary), is_in_files=True)
    return 0


def _with_prompt(
    settings: 'SentenceSettings', directory: str, prompt: str | None, name: str | None
) -> 'SentenceSettings':
    """Returns settings with the requested prompt instead of the default one."""
    from bert_jax.pretrained.sentences import check_prompt

    if prompt is not None and name is not None:
        raise BadInput('--prompt', 'is given together with --prompt_name', 'one of the two')
    if name is not None:
        if name not in settings.prompts:
            found = f'{directory} has no prompt of this name'
            expected = ', '.join(settings.prompts) or 'no --prompt_name, because it has no prompts'
            raise BadInput(f'--prompt_name={name}', found, expected, "--prompt='query: ' gives the text itself")
        prompt = settings.prompts[name]
    if prompt is not None:
        settings = dataclasses.replace(settings, prompt=prompt)
        check_prompt(settings, directory)
    return settings


def _describe(summary: 'Embedded') -> str:
    normalized = ', normalized' if summary.normalized else ''
    lines = [
        f'{summary.output}: {quantity(summary.lines, "vector")} of {summary.hidden_size:,} numbers '
        f'({" and ".join(summary.pooling)}{normalized}), {duration(summary.seconds)}'
    ]
    if summary.truncated:
        lines.append(f'{quantity(summary.truncated, "text")} cut at {summary.max_length:,} tokens')
    if summary.invalid_utf8_replaced:
        lines.append(f'{quantity(summary.invalid_utf8_replaced, "line")} with invalid UTF-8, which was replaced')
    return '\n'.join(lines)


COMMAND = Command(
    'embed',
    _run,
    'write one vector per text of a file',
    'bert-jax embed --model=runs/demo/export --input=lines.txt --output=vectors.npy',
    (
        MODEL,
        Flag(
            'input',
            'file with one text per line, or FILE.jsonl, FILE.csv, FILE.tsv or FILE.parquet with a column of texts; '
            'all but parquet may be compressed (.gz, .zst, .bz2, .xz)',
            group='essential',
        ),
        Flag(
            'output',
            'file to write, .npy, .parquet or .safetensors: per text the mean over its tokens, or what the '
            'sentence-transformers files of the model configure',
            group='essential',
        ),
        Flag('text_field', 'column of the texts', default='text'),
        Flag('id_field', 'column of ids, which a .parquet output keeps', default='id'),
        Flag(
            'dims',
            'number of leading dims of a vector to write, normalized again if the model normalizes',
            flags.DEFINE_integer,
        ),
        Flag('prompt_name', 'name of a prompt of the model before each text, such as query or document'),
        Flag('prompt', 'text before each text (default: the default prompt of the model, if it has one)'),
        Flag('dtype', 'of the computation, float32 or bfloat16; vectors are float32', default='float32'),
    ),
)
