"""The command line: help for every command, suggestions for typos, and no jax for help."""

import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

import bert_jax
from bert_jax import __main__, version
from bert_jax.__main__ import main, start
from bert_jax.cli.commands import COMMAND_GROUPS, COMMANDS
from bert_jax.cli.flags import GROUPS, Command, command_to_paste, parse
from bert_jax.errors import BadInput, DeviceFault, as_started

ROOT = Path(__file__).parents[2]
_OPTIONAL = {('train', 'config'), ('finetune', 'config')}  # a run that exists needs no config


def test_overview_lists_every_command_in_its_group(capsys: pytest.CaptureFixture) -> None:
    assert main(['bert-jax', '--help']) == main(['bert-jax', 'help']) == 0
    assert main(['bert-jax']) == 2
    shown = capsys.readouterr().out
    assert all(f'  {name} ' in shown and command.summary in shown for name, command in COMMANDS.items())
    assert (
        all(f'\n{group}:\n' in shown for group in COMMAND_GROUPS) and 'First steps' in shown and 'help TOPIC' in shown
    )


@pytest.mark.parametrize('name', COMMANDS)
def test_help_shows_every_flag_and_an_example_that_parses(name: str, capsys: pytest.CaptureFixture) -> None:
    command = COMMANDS[name]
    assert main(['bert-jax', name, '--help']) == 0
    shown = capsys.readouterr().out
    words = ' '.join(shown.split())
    assert all(f'--{flag.name} {flag.meaning}' in words for flag in command.flags) and '  --json ' in shown
    program, example_name, *arguments = shlex.split(command.example)
    assert (program, example_name) == ('bert-jax', name)
    assert shown.endswith(f'Example:\n  {as_started(command.example)}\n')
    parse(command, arguments)


@pytest.mark.parametrize('name', COMMANDS)
def test_flags_that_a_command_requires_are_essential(name: str, capsys: pytest.CaptureFixture) -> None:
    command = COMMANDS[name]
    essential = [flag.name for flag in command.flags_of('essential')]
    assert essential and all(flag.group in GROUPS for flag in command.flags)
    given = {argument.partition('=')[0]: argument for argument in shlex.split(command.example)}
    for missing in essential:
        if (name, missing) not in _OPTIONAL:
            assert main(['bert-jax', name, *(given[f'--{flag}'] for flag in essential if flag != missing)]) == 2
            message = ''.join(capsys.readouterr())
            assert f'--{missing}: is missing' in message and 'fix:' in message


@pytest.mark.parametrize(
    ('started_as', 'program'),
    [('/opt/venv/bin/bert-jax', 'bert-jax'), ('/src/bert_jax/__main__.py', 'python -m bert_jax')],
)
def test_suggested_commands_begin_as_the_user_began(
    started_as: str, program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, 'argv', [started_as])
    for arguments in (['--help'], ['train', '--help'], ['trian', '--help'], ['qqq'], ['help', 'config.qqq']):
        main(['bert-jax', *arguments])
    shown = ''.join(capsys.readouterr())
    assert shown.count(program + ' ') > 10 and command_to_paste('train').startswith(program)
    assert ('python -m bert_jax' in shown) == (program != 'bert-jax')
    error = BadInput('/src/bert-jax corpus', 'is damaged', '', 'rm -r /src/bert-jax corpus && bert-jax prepare')
    assert error.fix == f'rm -r /src/bert-jax corpus && {program} prepare'


_HELP = """
import sys
from bert_jax.__main__ import main
assert not any(main(['bert_jax', *command, '--help']) for command in ([], ['train'], ['plan'], ['report']))
print([name for name in ('jax', 'flax', 'orbax', 'torch', 'transformers', 'matplotlib') if name in sys.modules])
"""


@pytest.mark.processes
def test_help_imports_no_large_package() -> None:
    done = subprocess.run([sys.executable, '-c', _HELP], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == '[]'


def test_each_command_has_a_module_named_after_it() -> None:
    modules = {path.stem for path in (ROOT / 'bert_jax' / 'cli').glob('*.py')}
    expected = {'import': 'import_model', 'fill-mask': 'fill_mask'}
    assert {expected.get(name, name) for name in COMMANDS} <= modules


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['trian'], 'trian: is not a command'),
        (['trian'], 'did you mean train?'),
        (['train', '--workdri=x'], 'did you mean --workdir?'),
        (['train', 'x'], "'x' is not a flag"),
        (['train'], '--workdir: is missing'),
        (['bench', '--config=bert.py:tiny', '--config.train.stesp=1'], 'did you mean config.train.steps?'),
        (['bench', '--config=bert.py:huge'], "size 'huge'"),
        (['finetune', '--workdir=x', '--config=finetune/glue.py', '--config.task.texd=a'], 'config.task.text'),
        (['sweep', '--workdir=x'], 'a sweep file'),
        (['prepare', '--config=demo.py', '--shard=2/2'], 'I from 0 to N - 1'),
        (['prepare', '--config=demo.py', '--show=-1'], '--show=-1: is not a non-negative integer'),
        (['bench', '--config=demo.py', '--seconds=-1'], '--seconds=-1: is not a non-negative number'),
        (['plan', '--target=here', '--price=cheap'], '--price=cheap: is not a number'),
        (['evaluate', '--workdir=x', '--step=five'], '--step=five: is not an integer'),
        (['bench', '--config=demo.py', '--config.train.steps=many'], '--config.train.steps=many: is not an integer'),
        (['bench', '--config=demo.py', '--config.data.packing=x'], '--config.data.packing=x: is neither true nor fal'),
        (['bench', '--config=demo.py', '--config.train.steps=0'], 'help config.train.steps\n'),
        (['doctor', '--config=demo.py', '--config.train.steps=0'], 'help config.train.steps\n'),
        (['finetune', '--config=finetune/glue.py', '--workdir=x', '--config.task.kind=x'], 'fix:'),
        (['embed', '--model=x', '--input=no', '--output=v.npy'], 'embed --help\n'),
    ],
)
def test_bad_arguments_exit_2_with_a_suggestion(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(['bert-jax', *arguments]) == 2
    printed = ''.join(capsys.readouterr())
    assert message in printed and 'fix: ' in printed


@pytest.mark.parametrize(
    'error, status',
    [
        (BadInput('a', 'b'), 2),
        (DeviceFault('a', 'b'), 1),
        (PermissionError(13, 'no permission', 'file'), 2),
        (MemoryError(), 2),
        (RuntimeError('RESOURCE_EXHAUSTED: out of memory'), 2),
        (KeyboardInterrupt(), 75),
    ],
)
def test_errors_a_user_can_fix_have_no_traceback(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _raise_in_bench(monkeypatch, error)
    assert main(['bert-jax', 'bench']) == status
    assert capsys.readouterr().err.startswith('bert_jax: ')


@pytest.mark.parametrize('error', [RuntimeError('a bug'), OSError(5, 'a broken disk'), ValueError()])
def test_bugs_and_faults_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    _raise_in_bench(monkeypatch, error)
    with pytest.raises(type(error)):
        main(['bert-jax', 'bench'])


def _raise_in_bench(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(*_: object) -> int:
        raise error

    monkeypatch.setitem(COMMANDS, 'bench', Command('bench', run, '', '', ()))


def test_config_flag_works_with_and_without_equals_sign() -> None:
    for arguments in (['--config=bert.py:tiny'], ['--config', 'bert.py:tiny']):
        values, rest = parse(COMMANDS['bench'], [*arguments, '--config.train.steps=7'])
        assert values.config.model.hidden_size == 128 and values.config.train.steps == 7 and not rest


def test_program_exits_with_the_status_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    monkeypatch.setattr(__main__, 'leave', left.append)
    monkeypatch.setattr(sys, 'path', ['elsewhere'])
    for arguments in (['--help'], ['trian']):
        monkeypatch.setattr(sys, 'argv', ['bert-jax', *arguments])
        start()
    assert left == [0, 2] and sys.path == [str(Path.cwd()), 'elsewhere']  # once, as for `python -m`


@pytest.mark.processes
def test_help_does_not_import_jax() -> None:
    program = (
        'import sys; from bert_jax.__main__ import COMMANDS, main\n'
        'for name in COMMANDS: main(["bert-jax", name, "--help"])\n'
        'print(sorted({"jax", "flax", "orbax", "pyarrow", "tokenizers"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '[]', done.stderr


def test_version_is_written_in_one_place() -> None:
    assert bert_jax.__version__ == version.__version__
    texts = [ROOT / name for name in ('pyproject.toml', 'CITATION.cff', 'bert_jax/__init__.py', 'README.md')]
    assert all(version.__version__ not in path.read_text() for path in texts)


def test_undecodable_bytes_in_a_text_are_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = []
    model = types.SimpleNamespace(fill_mask=lambda text, _: given.append(text) or [])
    monkeypatch.setattr('bert_jax.finetune.load.load_model', lambda _: model)
    assert main(['bert-jax', 'fill-mask', '--model=x', 'caf\udcc3\udca9 [MASK]', '\udcff [MASK]']) == 0
    assert given == ['café [MASK]', '\ufffd [MASK]'] and 'café [MASK]' in capsys.readouterr().out
