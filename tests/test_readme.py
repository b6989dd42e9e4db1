"""Every command in the README runs, and every path and link in the documents leads to a file."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import parse
from bert_jax.config import finetuning, resolve
from tests.support.commands import run
from tests.support.documents import code_blocks, commands, commands_of
from tests.support.processes import ROOT
from tests.support.texts import WORDS, write_text

README = (ROOT / 'README.md').read_text()
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), ROOT / 'benchmarks' / 'LOG.md']
)
PATH = re.compile(r'(?<![\w./~-])(?:tests|bert_jax|configs|launch)/[\w./-]*\w/?')
LINK = re.compile(r'\]\((?!https?:)([^)#\s]+)')


@pytest.mark.parametrize('document', DOCUMENTS)
def test_paths_in_documents_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    missing = sorted(path for path in {*PATH.findall(text)} if not (ROOT / path).exists())
    assert not missing


@pytest.mark.parametrize('document', ['README.md', 'CONTRIBUTING.md', 'SECURITY.md'])
def test_links_in_top_level_documents_lead_to_files(document: str) -> None:
    text = (ROOT / document).read_text()
    missing = sorted(target for target in {*LINK.findall(text)} if not (ROOT / target).exists())
    assert not missing


WITH_COMMANDS = [document for document in DOCUMENTS if commands_of((ROOT / document).read_text())]
OWN_CONFIG = """import bert_jax.config

def get_config():
    return bert_jax.config.bert('tiny')
"""


@pytest.mark.parametrize('document', WITH_COMMANDS)
def test_commands_in_documents_parse(document: str, tmp_path: Path, monkeypatch) -> None:
    """Every flag and config field exists and every value is valid; nothing is run."""
    monkeypatch.chdir(tmp_path)
    for name in ('mine.py', 'FILE.py'):
        Path(name).write_text(OWN_CONFIG)
    for name, *arguments in commands_of((ROOT / document).read_text()):
        values, _ = parse(COMMANDS[name], [argument for argument in arguments if argument != '…'])
        config = values['config'].value if 'config' in values else None
        if name == 'finetune':
            finetuning.resolve(config)
        elif config is not None and name != 'sweep':
            resolve(config)


def test_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 160
    assert len(README.encode()) <= 9000


_SIZES = {'num_layers': 1, 'hidden_size': 32, 'num_heads': 2, 'intermediate_size': 32, 'max_positions': 32}
_PREPARE = [
    '--config.tokenizer.vocab_size=500',
    '--config.data.validation_fraction=0.2',
    '--config.data.sequence_length=16',
    *(f'--config.model.{name}={value}' for name, value in _SIZES.items()),
]
_TRAIN = [
    '--config.train.steps=2',
    '--config.train.global_batch_size=8',
    '--config.optimizer.warmup_steps=1',
    '--config.train.examples=()',
]
_FINETUNE = [
    '--seeds=1',
    '--config.task.sequence_length=16',
    '--config.train.epochs=1',
    '--config.train.global_batch_size=8',
]
SMALLER = {  # flags that make a command of the README take seconds
    'prepare': ['--workers=1', *_PREPARE],
    'train': [*_PREPARE, *_TRAIN],
    'evaluate': ['--sample=8'],
    'finetune': _FINETUNE,
}


def _write_inputs(directory: Path) -> None:
    """Writes the files that the README's commands read."""
    (directory / 'my').mkdir()
    write_text(directory / 'my' / 'text.txt')
    (directory / 'lines.txt').write_text(f'{WORDS[0]} {WORDS[1]}.\n{WORDS[2]}\n')
    task = directory / 'glue' / 'SST-2'
    task.mkdir(parents=True)
    examples = ''.join(f'{word} {WORDS[i + 20]}\t{i % 2}\n' for i, word in enumerate(WORDS[:16]))
    for name in ('train.tsv', 'dev.tsv'):
        (task / name).write_text(f'sentence\tlabel\n{examples}')


def _check_make(target: str) -> None:
    subprocess.run(['make', '--dry-run', target], cwd=ROOT, check=True, capture_output=True)


def _check_pip(words: list[str]) -> None:
    assert words[1] == 'install'
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    for extra in re.findall(r'\[(\w[\w-]*)\]', ' '.join(words)):
        assert extra in extras


@pytest.mark.processes
@pytest.mark.compiles
@pytest.mark.usefixtures('one_device')
def test_every_command_in_the_readme_works(tmp_path: Path, monkeypatch) -> None:
    """Runs the commands and the Python of the README in order, on tiny text and with tiny sizes."""
    pytest.importorskip('transformers')
    monkeypatch.chdir(tmp_path)
    _write_inputs(tmp_path)
    ran = []
    for language, code in code_blocks(README, 'sh', 'python'):
        if language == 'python':
            exec(compile(code, 'README.md', 'exec'), {})
            continue
        for program, *words in commands(code):
            if program == 'make':
                _check_make(*words)
            elif program == 'pip':
                _check_pip([program, *words])
            else:
                assert program == 'bert-jax'
                assert run([*words, *SMALLER.get(words[0], [])], tmp_path) == 0, words
                ran.append(words[0])
    assert {'prepare', 'train', 'evaluate', 'export', 'fill-mask', 'embed', 'finetune', 'predict'} <= {*ran}
    assert (tmp_path / 'predictions.jsonl').read_text().count('\n') == 2
