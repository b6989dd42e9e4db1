"""Config files are looked up on disk first, then among those of the package."""

import shutil
from pathlib import Path

import pytest

from bert_jax.cli.commands import COMMANDS
from bert_jax.cli.flags import config_of, fields_of, parse
from bert_jax.cli.shipped import find_config, shipped_configs
from bert_jax.config import finetuning
from bert_jax.errors import BadInput
from bert_jax.sweep.runs import expand

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_config_of_the_repository_is_shipped() -> None:
    assert shipped_configs() == sorted(str(path.relative_to(ROOT / 'configs')) for path in ROOT.glob('configs/**/*.py'))


@pytest.mark.parametrize('name', ['bert.py:tiny', 'configs/bert.py:tiny', 'configs/demo.py', 'finetune/glue.py:rte'])
def test_shipped_config_is_found_by_name_from_anywhere(name: str) -> None:
    found, _, variant = find_config(name).partition(':')
    assert Path(found).read_text() == (ROOT / 'configs' / name.partition(':')[0].removeprefix('configs/')).read_text()
    assert variant == name.partition(':')[2]


def test_file_on_disk_takes_precedence_over_shipped_one(elsewhere: Path) -> None:
    shutil.copy(ROOT / 'configs' / 'bert.py', elsewhere / 'demo.py')
    assert find_config('demo.py') == 'demo.py'
    assert config_of(parse(COMMANDS['train'], ['--config=demo.py'])[0]).model.num_layers == 12


@pytest.mark.parametrize(
    'name, suggestion',
    [
        ('brt.py:tiny', "did you mean 'bert.py:tiny'?"),
        ('squad.py:v2', "did you mean 'finetune/squad.py:v2'?"),
        ('configs/dmeo.py', "did you mean 'demo.py'?"),
        ('bert:base', "did you mean 'bert.py:base'?"),
        ('finetune/gleu.py', "did you mean 'finetune/glue.py'?"),
        ('../configs/demo.py', 'a shipped one: bert.py, bert_lamb.py'),
        ('x' * 300, 'a shipped one: bert.py, bert_lamb.py'),
    ],
)
def test_unknown_config_lists_shipped_ones_and_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(BadInput) as caught:
        find_config(name)
    assert suggestion in str(caught.value) and 'finetune/glue.py' in str(caught.value)


def test_shipped_sweep_finds_and_resolves_its_base() -> None:
    values, _ = parse(
        COMMANDS['finetune'], ['--config=finetune/glue.py:rte', '--config.task.directory=glue', '--config.init=a']
    )
    assert finetuning.resolve(fields_of(values.config)).task.metrics == ('accuracy',)
    fields = fields_of(parse(COMMANDS['sweep'], ['--config=sweeps/learning_rate.py'])[0].config)
    base = parse(COMMANDS['train'], [f'--config={fields["base"]}'])[0].config
    runs = expand(fields, fields_of(base), 'runs/a')
    assert len(runs) == 8
    assert config_of(parse(COMMANDS['train'], runs[0].flags)[0]) == runs[0].config
