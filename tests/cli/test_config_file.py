"""Every problem with `--config` is reported with the file, the line and what would work."""

from pathlib import Path

import pytest

from bert_jax.cli.config_file import load_config_file
from bert_jax.errors import BadInput
from tests.support.commands import run

WRONG = {
    'zero.py': ('def get_config():\n    return 1 / 0\n', 'zero.py:2: raises ZeroDivisionError: division by zero'),
    'missing.py': ('\nimport no_such_module\n', "missing.py:2: raises ModuleNotFoundError: No module named 'no_such"),
    'syntax.py': ('x = 1\n\ndef get_config(:\n', 'syntax.py:3: raises SyntaxError'),
    'indented.py': ('x = 1\n  y = 2\n', 'indented.py:2: raises IndentationError'),
    'field.py': (
        'from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict().a\n',
        'field.py:3: raises AttributeError',
    ),
    'file.py': ('def get_config():\n    return open("no/such")\n', 'file.py:2: raises FileNotFoundError'),
    'exits.py': ('raise SystemExit(0)\n', 'exits.py:1: raises SystemExit: 0'),
    'deep.py': ('def f():\n    f()\nf()\n', 'deep.py:2: raises RecursionError'),
    'variant.py': ('def get_config(size): pass\n', 'variant.py: raises TypeError: get_config() missing'),
    'binary.py': ('\x00\x01', 'binary.py: raises'),
    'empty.py': ('', 'empty.py: get_config(): does not exist'),
    'nothing.py': ('def get_config():\n    pass\n', 'get_config(): returns nothing (is its return statement missing?)'),
    'dict.py': ('def get_config():\n    return {}\n', 'get_config(): returns a value of type dict'),
    'variable.py': ('get_config = 3\n', 'get_config(): does not exist'),
    'settings.yaml': ('train: {steps: 3}\n', 'settings.yaml: is a .yaml file'),
    'plain.yaml': ('steps: 3\n', 'configs/demo.py'),
    'settings.json': ('{"train": true}', 'configs/demo.py'),
    'folder.py': (None, '--config: folder.py is a directory'),
}


@pytest.mark.parametrize('name', WRONG)
def test_broken_config_file_is_rejected_with_file_and_line(name: str, tmp_path: Path, capsys) -> None:
    text, words = WRONG[name]
    if text is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text(text)
    assert run(['prepare', f'--config={name}'], tmp_path) == 2
    shown = capsys.readouterr().err
    assert words in shown and 'expected: ' in shown and 'fix: ' in shown and 'Traceback' not in shown
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], '--config: is missing'),
        (['--config'], '--config: has no value'),
        (['--config='], '--config: is empty'),
        (['--config=no/such.py'], 'no/such.py does not exist'),
        (['--config=glue.py'], "did you mean 'finetune/glue.py'?"),
        (['--config=/dev/null'], 'is not a regular file'),
        (['--config.train.steps=3'], 'overrides a config, but no config is given'),
        (['--config=demo.py', '--config.phases[0].steps=3'], 'config.phases[0].steps: does not exist'),
        (['--config=demo.py', '--config.train.stepz=3'], 'did you mean config.train.steps?'),
        (['--config=demo.py', '--config.train=3'], '--config.train=3'),
        (['--config=demo.py', '--config.train.steps'], '--config.train.steps'),
        (['--config=demo.py:variant'], 'raises TypeError: get_config() takes 0 positional arguments'),
        (['--flagfile=no/such'], 'no/such'),
    ],
)
def test_wrong_use_of_config_flags_is_rejected(arguments: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert run(['prepare', *arguments], tmp_path) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_last_config_wins_in_any_order_or_flagfile(tmp_path: Path, capsys) -> None:
    (tmp_path / 'flags').write_text('--config=bert.py:tiny\n--config.train.steps=5\n')
    for arguments in (
        ['--config.train.steps=5', '--config=demo.py', '-config', 'bert.py:tiny'],
        ['--flagfile=flags'],
    ):
        assert run(['prepare', *arguments, '--config.data.source=no:such'], tmp_path) == 2
        assert 'config.data.source' in capsys.readouterr().err
        assert run(['prepare', *arguments, '--config.optimizer.warmup_steps=9'], tmp_path) == 2
        assert 'config.optimizer.warmup_steps: is 9' in capsys.readouterr().err


def test_config_file_may_print_and_raise_bad_input(tmp_path: Path, capsys) -> None:
    path = tmp_path / 'prints.py'
    path.write_text(
        'import dataclasses\n'
        'from ml_collections import ConfigDict\n'
        '@dataclasses.dataclass\n'
        'class Own:\n'
        "    steps: 'int' = 3\n"
        'def get_config(variant="a"):\n'
        '    print("from the config")\n'
        '    return ConfigDict({"steps": Own().steps, "variant": variant})\n'
    )
    assert load_config_file(f'{path}:b:c').to_dict() == {'steps': 3, 'variant': 'b:c'}
    out, err = capsys.readouterr()
    assert not out and 'from the config' in err
    path.write_text('from bert_jax.config import bert\ndef get_config():\n    return bert("huge")\n')
    with pytest.raises(BadInput, match="size 'huge'"):
        load_config_file(str(path))
