"""The average of checkpoints is NumPy's, is proven and evaluated like any export, and checks what it averages."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bert_jax import load_pretrained
from bert_jax.errors import BadInput
from bert_jax.pretrained.average import describe_average, load_average, parse
from bert_jax.pretrained.safetensors_files import read_tensors
from tests.support.commands import run
from tests.support.configs import as_flags, tiny_run
from tests.support.texts import write_text

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory, one_device: None) -> Path:
    """Holds the runs one/ and two/ of different seeds, with checkpoints of steps 2, 4 and 6."""
    directory = tmp_path_factory.mktemp('runs')
    write_text(directory / 'text.txt')
    changes = {'train__steps': 6, 'train__checkpoint_every': 2, 'train__keep_checkpoints': 3, 'train__examples': ()}
    flags = as_flags(tiny_run(directory, optimizer__peak_learning_rate=0.01, **changes))
    assert run(['prepare', *flags], directory) == 0
    for seed, name in enumerate(('one', 'two')):
        assert run(['train', *flags, f'--config.train.seed={seed}', f'--workdir={name}'], directory) == 0
    return directory


def _exported(directory: Path, name: str) -> dict[str, np.ndarray]:
    return read_tensors(directory / name)[1]


@pytest.fixture(scope='module')
def tensors(runs: Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns the tensors of checkpoints by name."""
    found = {}
    for name in ('one@2', 'one@4', 'one@6', 'two@6'):
        workdir, step = name.split('@')
        assert run(['export', f'--workdir={workdir}', f'--step={step}', f'--output=models/{name}'], runs) == 0
        found[name] = _exported(runs / 'models', name)
    return found


@pytest.mark.parametrize(
    ('flags', 'weights'),
    [
        (['--workdir=one', '--average=2,4,6'], {'one@2': 1 / 3, 'one@4': 1 / 3, 'one@6': 1 / 3}),
        (['--workdir=one', '--average=4:1,6:3'], {'one@4': 0.25, 'one@6': 0.75}),
        (['--average=one@6:0.5,two@6:1.5'], {'one@6': 0.25, 'two@6': 0.75}),
        (['--workdir=one', '--average=4:2,two@6:-1'], {'one@4': 2.0, 'two@6': -1.0}),
    ],
)
def test_exported_average_is_the_one_of_numpy(
    runs: Path, tensors: dict, flags: list[str], weights: dict[str, float], capsys: pytest.CaptureFixture
) -> None:
    assert run(['export', *flags, '--output=models/average', '--json'], runs) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof['largest_difference'] <= proof['tolerance']
    assert [f'{each["run"]}@{each["step"]}' for each in proof['average']] == [*weights]
    np.testing.assert_allclose([each['weight'] for each in proof['average']], [*weights.values()])
    found = _exported(runs / 'models', 'average')
    for name, value in found.items():
        expected = sum(weight * tensors[part][name].astype(np.float64) for part, weight in weights.items())
        np.testing.assert_allclose(value, expected, rtol=2e-7, atol=1e-9, err_msg=name)


def test_average_is_evaluated_and_its_card_says_so(runs: Path, capsys: pytest.CaptureFixture) -> None:
    average = ['--workdir=one', '--average=4,6']
    assert run(['evaluate', *average, '--sample=0', '--json'], runs) == 0
    measured = json.loads(capsys.readouterr().out)
    assert [each['step'] for each in measured['average']] == [4, 6] and measured['step'] == 6
    assert run(['export', *average, '--output=models/evaluated'], runs) == 0
    card = (runs / 'models' / 'evaluated' / 'README.md').read_text()
    assert 'the average of steps 4 and 6 of one' in card
    assert f'{measured["mlm_loss"]:.3f} nats per masked token' in card
    assert run(['export', '--workdir=one', '--average=4,6:2', '--output=models/other'], runs) == 0
    other = (runs / 'models' / 'other' / 'README.md').read_text()
    assert 'one at step 4 (weight 0.333) and one at step 6 (weight 0.667)' in other
    assert 'No evaluation of these weights was recorded' in other


def test_average_of_equal_weights_is_that_model(runs: Path) -> None:
    shutil.copytree(runs / 'one', runs / 'copy')
    parts = parse(f'{runs}/one@6,{runs}/copy@6:2')
    assert describe_average(parts) == 'one at step 6 (weight 0.333) and copy at step 6 (weight 0.667)'
    texts = ['the first text', 'another']
    ours, theirs = (each.encode(texts).mean_pooled for each in (load_average(parts), load_pretrained(f'{runs}/one')))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ('average', 'words'),
    [
        ('2,5', 'holds no checkpoint of step 5\n  expected: one of 2, 4, 6'),
        ('2', 'does not name several checkpoints'),
        ('2,2', 'does not name several checkpoints, each once'),
        ('2:1,4:-1', 'has weights that add up to 0'),
        ('2:0.5,4:nan', 'has weights that add up to nan'),
        ('2,four', "names 'four'"),
        ('2,nowhere@4', 'is not the workdir of a run'),
        ('2,wide@4', 'in model.intermediate_size'),
        ('2,foreign@4', 'in the tokenizer'),
    ],
)
def test_what_cannot_be_averaged_is_rejected(
    runs: Path, monkeypatch: pytest.MonkeyPatch, average: str, words: str
) -> None:
    monkeypatch.chdir(runs)
    for name in ('wide', 'foreign'):
        if not (runs / name).exists():
            shutil.copytree(runs / 'two', runs / name)
            content = json.loads((runs / name / 'config.json').read_text())
            content['config']['model']['intermediate_size'] *= 2 if name == 'wide' else 1
            content['fingerprint']['tokenizer'] += 'other' if name == 'foreign' else ''
            (runs / name / 'config.json').write_text(json.dumps(content))
    with pytest.raises(BadInput) as error:
        parse(average, 'one')
    assert words in str(error.value)


def test_step_beside_an_average_is_rejected(runs: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(['export', '--workdir=one@4', '--average=2,6', '--output=models/none'], runs) == 2
    assert 'steps in --average only' in capsys.readouterr().err and not (runs / 'models' / 'none').exists()
