"""The reference of `--json` lists exactly the keys that the commands print."""

import contextlib
import fnmatch
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bert_jax.cli.commands import COMMANDS
from tests.support.commands import run
from tests.support.configs import as_flags, tiny_run
from tests.support.processes import ROOT
from tests.support.retrieval import write_lines, write_names_set
from tests.support.tasks import write_reviews
from tests.support.texts import write_text

PAGE = (ROOT / 'docs' / 'reference' / 'json.md').read_text()


def _documented(page: str) -> dict[str, list[str]]:
    """Returns {command: paths of its keys} from the tables of the page; a `*` stands for keys that vary."""
    sections = re.split(r'^## ', page, flags=re.MULTILINE)[1:]
    return {
        section.partition('\n')[0].strip('`'): re.findall(r'^\| `([^`]+)` \|', section, flags=re.MULTILINE)
        for section in sections
    }


def _paths(value: Any, path: str = '') -> Iterator[str]:
    """Yields the paths of all keys in a JSON value: `a.b` for an object in an object, `a[]` for the items of a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f'{path}.{key}'.lstrip('.')
            yield from _paths(inner, f'{path}.{key}'.lstrip('.'))
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item, f'{path}[]')


def _covers(documented: str, path: str) -> bool:
    pattern = documented.replace('[', '[[]')
    return fnmatch.fnmatchcase(path, pattern) or documented.removesuffix('.*') == path


def _run_with_json(name: str, arguments: list[str], directory: Path) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert run([name, *arguments, '--json'], directory) == 0, (name, arguments)
    return json.loads(stdout.getvalue())


@pytest.fixture(scope='module')
def printed(tmp_path_factory: pytest.TempPathFactory, one_device: None) -> dict[str, set[str]]:
    """Runs every command on tiny inputs; returns {command: paths of the keys that it printed}."""
    directory = tmp_path_factory.mktemp('json')
    printed: dict[str, set[str]] = {}
    for name, *arguments in _commands(directory):
        printed.setdefault(name, set()).update(_paths(_run_with_json(name, arguments, directory)))
    return printed


def _commands(directory: Path) -> Iterator[list[str]]:
    """Yields commands that together print every key; each finds the files of those before it."""
    write_text(directory / 'text.txt')
    (directory / 'glue').mkdir()
    for split in ('train', 'dev'):
        write_reviews(directory / 'glue' / f'{split}.tsv', 16, 0)
    (directory / 'lines.txt').write_text('a great film\n')
    fields = tiny_run(
        directory, train__steps=2, train__checkpoint_every=1, train__examples=(), optimizer__warmup_steps=1
    )
    fields |= {'optimizer.schedule': 'constant', 'train.ema': 0.5}
    flags = as_flags(fields)
    _write_sweep(directory / 'sweep.py', fields)
    task = ['--config=finetune/glue.py:sst2', '--config.task.directory=glue', '--config.task.sequence_length=16']
    phases = ['--config.phases=({"steps": 1, "sequence_length": 16}, {"steps": 1, "sequence_length": 32})']
    plan = ['plan', *flags, '--target=b200:1x8', '--price=2.0']
    yield ['advise', *flags, '--target=h100:1x1', '--price=3.0']
    yield ['prepare', *flags, '--tokenizer_only']
    yield ['prepare', *flags, '--config.data.corpus=sharded', '--shard=1/2']
    yield ['prepare', *flags, '--show=1']
    cleaned = ['--config.data.corpus=cleaned', '--config.data.languages=("*",)', '--config.data.redact=("email",)']
    yield ['prepare', *flags, *cleaned, '--config.data.quality_rules=("c4_short_lines",)', '--show_dropped=1']
    yield ['doctor', *flags]
    yield plan
    yield [*plan, *phases]
    yield [*plan, '--search']
    yield [*plan, '--scaling']
    yield [*plan, '--traffic']
    yield ['train', *flags, '--workdir=sweep/one']
    yield ['anneal', '--workdir=sweep/one@1', '--steps=1', '--output=annealed']
    yield ['evaluate', '--workdir=sweep/one', '--sample=8']
    learned = ', '.join(f'{{"steps": 1, "warmup_steps": 0, "objective": "{name}"}}' for name in ('clm', 'mntp'))
    unpaired = [*flags, '--config.data.pairing=none']
    yield ['train', *unpaired, f'--config.phases=({learned})', '--workdir=learned']
    yield ['evaluate', '--workdir=learned', '--step=1', '--sample=8']
    yield ['evaluate', '--workdir=learned', '--step=2', '--sample=0']
    yield ['train', *unpaired, '--config.objective.name=rtd', '--workdir=detects']
    yield ['evaluate', '--workdir=detects', '--sample=0']
    yield ['export', '--workdir=sweep/one', '--output=model']
    yield ['evaluate', '--workdir=sweep/one', '--average=1,2', '--sample=0']
    yield ['export', '--workdir=sweep/one', '--average=1,2', '--output=averaged']
    yield ['import', '--from=model', '--workdir=imported']
    yield ['fill-mask', '--model=model', '[MASK]']
    yield ['embed', '--model=model', '--input=lines.txt', '--output=vectors.npy']
    write_names_set(directory / 'set')
    write_lines(directory / 'pairs.jsonl', [{'sentence1': 'a', 'sentence2': 'b', 'score': score} for score in (0, 1)])
    yield ['evaluate', '--model=model', '--retrieval=set', '--sts=pairs.jsonl']
    write_lines(directory / 'positives.jsonl', [{'anchor': 'film', 'positive': text} for text in ('a film', 'a plot')])
    yield ['mine', '--model=model', '--input=positives.jsonl', '--passages=lines.txt', '--output=triplets.jsonl']
    yield ['finetune', *task, '--config.init=model', '--config.train.epochs=1', '--workdir=tuned']
    yield ['evaluate', '--workdir=tuned']
    yield ['export', '--workdir=tuned', '--output=tuned/model']
    yield ['predict', '--model=tuned/model', '--input=lines.txt']
    yield ['predict', '--model=tuned/model', '--input=lines.txt', '--output=predictions.jsonl']
    yield ['report', '--workdir=sweep/one']
    yield ['evaluate', '--workdir=sweep/one', '--sample=8', f'--source=text:{directory}/text.txt']
    (directory / 'text.txt').unlink()
    yield ['evaluate', '--workdir=sweep/one', '--sample=8']
    yield ['sweep', '--config=sweep.py', '--workdir=sweep', '--jobs=0']
    yield ['launch', '--output=launch']
    yield ['bench', *flags, '--seconds=0']


def _write_sweep(path: Path, fields: dict[str, object]) -> None:
    """Writes a sweep of one run, which `train --workdir=sweep/one` trains."""
    sweep = {'base': f'{ROOT}/configs/demo.py', 'fixed': fields, 'runs': [{'name': 'one'}]}
    lines = ['from ml_collections import ConfigDict', '', 'def get_config():']
    lines += [f'    return ConfigDict({sweep!r}, allow_dotted_keys=True)', '']
    path.write_text('\n'.join(lines))


def test_json_reference_has_a_table_for_every_command() -> None:
    assert sorted(_documented(PAGE)) == sorted(COMMANDS) and all(_documented(PAGE).values())


@pytest.mark.compiles
def test_every_json_key_is_documented_and_every_documented_key_exists(printed: dict[str, set[str]]) -> None:
    pytest.importorskip('transformers')
    documented = _documented(PAGE)
    for name in COMMANDS:
        undocumented = [path for path in sorted(printed[name]) if not _is_documented(path, documented[name])]
        missing = [key for key in documented[name] if not any(_covers(key, path) for path in printed[name])]
        assert (undocumented, missing) == ([], []), name


def _is_documented(path: str, documented: list[str]) -> bool:
    """Returns whether a path, or a path inside it, is in the table of its command."""
    return any(_covers(key, path) or key.startswith((f'{path}.', f'{path}[')) for key in documented)
