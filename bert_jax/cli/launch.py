"""`launch`: writes scripts that start a run on several processes or hosts, for the user to edit.

`bert_jax/launch` is a link to `launch/` in the repository, and a copy of it in a wheel.
"""

from pathlib import Path

from absl import flags

from bert_jax.cli.flags import Command, Flag, print_result, required
from bert_jax.errors import BadInput
from bert_jax.files import write_whole

_SCRIPTS = Path(__file__).parents[1] / 'launch'


def _run(values: flags.FlagValues, _: list[str]) -> int:
    output = Path(required(COMMAND, values, 'output'))
    scripts = sorted(path for path in _SCRIPTS.iterdir() if path.is_file())
    if output.exists() and not output.is_dir():
        raise BadInput(f'--output={output}', 'is not a directory', 'a directory, new or existing', '--output=ANOTHER')
    existing = [path.name for path in scripts if (output / path.name).exists()]
    if existing:
        raise BadInput(
            str(output),
            f'already contains {", ".join(existing)}, which may have been edited',
            'a directory without them',
            '--output=ANOTHER, or move these files away',
        )
    output.mkdir(parents=True, exist_ok=True)
    for script in scripts:
        content, target = script.read_text('utf-8'), output / script.name
        write_whole(target, content)
        if content.startswith('#!'):
            mode = target.stat().st_mode
            target.chmod(mode | (mode & 0o444) >> 2)  # executable by everyone who may read it
    written = [str(output / script.name) for script in scripts]
    print_result(values, {'written': written}, '\n'.join([*map('Wrote {}'.format, written), _USAGE]), is_in_files=True)
    return 0


_USAGE = 'The comment at the top of each file shows how to use it.'

COMMAND = Command(
    'launch',
    _run,
    'write scripts that start a run in several processes: SLURM, Kubernetes, TPU pods',
    'bert-jax launch --output=launch',
    (Flag('output', 'directory to write the scripts to', group='essential'),),
)
