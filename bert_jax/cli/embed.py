"""`embed`: one vector per line of a text file."""

import dataclasses

from absl import flags

from bert_jax.cli.devices import keep_programs
from bert_jax.cli.flags import MODEL, Command, Flag, print_result, required
from bert_jax.runtime.stopping import cleaning_up


@cleaning_up()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    directory, text, output = (required(values, name) for name in ('model', 'input', 'output'))
    from bert_jax.pretrained.embed import check, embed

    check(text, output)
    from bert_jax.pretrained.load import load_pretrained

    keep_programs()
    summary = embed(load_pretrained(directory), text, output)
    truncated = f'; {summary.truncated:,} lines truncated' if summary.truncated else ''
    vectors = f'{summary.lines:,} vectors of {summary.hidden_size:,}'
    print_result(
        values,
        dataclasses.asdict(summary),
        f'{summary.output}: {vectors}, {summary.seconds:.1f} s{truncated}',
        is_in_files=True,
    )
    return 0


COMMAND = Command(
    'embed',
    _run,
    'mean-pooled vectors of the lines of a file',
    'python -m bert_jax embed --model=runs/demo/export --input=lines.txt --output=vectors.npy',
    (MODEL, Flag('input', 'text file; one vector per line'), Flag('output', '.npy file to write')),
)
