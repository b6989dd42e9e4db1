"""`plan` from the command line: the keys of its JSON, bad input, and predictions against measurements."""

import json
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.processes import ROOT, bert_jax

CONFIG = f'--config={ROOT}/configs/bert.py:base'


@pytest.mark.parametrize(
    'flags, parameters, tokens, steps',
    [
        ([CONFIG], 110_106_428, 256 * 128, 1_000_000),
        ([f'--config={ROOT}/configs/modernbert.py:base', '--config.phases=()'], 149_655_232, 4608 * 1024, 1_000_000),
    ],
)
def test_json_has_the_documented_keys_without_a_compiler(
    flags: list[str], parameters: int, tokens: int, steps: int, tmp_path: Path, capsys
) -> None:
    assert run(['plan', *flags, '--target=b200:1x8', '--price=2.5', '--json'], tmp_path) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan['fits'] is True and plan['parameters'] == parameters
    assert plan['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
    parts = ('parameters', 'optimizer', 'batch', 'activations', 'temporaries')
    assert plan['required_bytes']['total'] == pytest.approx(sum(plan['required_bytes'][part] for part in parts), abs=9)
    assert plan['required_bytes']['total'] < plan['usable_memory_bytes'] < plan['device_memory_bytes'] == 180e9
    assert plan['tokens_per_second'] == pytest.approx(tokens / plan['step_seconds'])
    assert plan['mfu'] == pytest.approx(plan['flops_per_step'] / plan['step_seconds'] / (8 * 2250e12))
    assert plan['run_seconds'] == pytest.approx(steps * plan['step_seconds'])
    assert plan['cost'] == pytest.approx(plan['run_seconds'] / 3600 * 8 * 2.5)
    assert {'kind', 'axis', 'bytes', 'count'} <= set(plan['collectives'][0])


@pytest.mark.parametrize(
    'flags, expected',
    [
        (['--target=tpu-v5z:4x4'], 'did you mean tpu-v5'),
        (['--target=tpu-v5e:4x5'], '--target=tpu-v5e:4x4'),
        (['--target=h100:1x8', '--config.mesh.tensor=5'], 'there are 8 devices'),
        (['--target=h100:1x8', '--config.mesh.tensor=8'], 'does not divide the 12 heads'),
        ([], '--target: is missing'),
    ],
)
def test_bad_input_is_reported_with_exit_status_2(flags: list[str], expected: str, tmp_path: Path, capsys) -> None:
    assert run(['plan', CONFIG, *flags], tmp_path) == 2
    output = capsys.readouterr()
    assert expected in output.err and not output.out


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize('config', ['demo.py', 'modernbert.py:nano'])
def test_target_here_is_compiled_predicted_and_measured(config: str) -> None:
    small = ['--config.model.num_layers=1', '--config.data.sequence_length=16', '--config.train.global_batch_size=8']
    done = bert_jax('plan', f'--config={ROOT}/configs/{config}', '--target=here', *small, '--json')
    plan = json.loads(done.stdout)
    assert plan['compiled'] and plan['fits'] and plan['measured']['step_seconds'] > 0
    assert plan['measured']['peak_bytes'] > plan['required_bytes']['total']  # includes Python and the compiler
    assert plan['measured']['grown_bytes'] == pytest.approx(plan['required_bytes']['total'], rel=0.5, abs=1 << 25)


def test_run_in_phases_is_planned_as_a_whole(tmp_path: Path, capsys) -> None:
    config = f'--config={ROOT}/configs/bert_two_phase.py:base'
    assert run(['plan', config, '--target=b200:1x8', '--price=2.0', '--json'], tmp_path) == 0
    plan = json.loads(capsys.readouterr().out)
    first, second = plan['phases']
    assert plan['run_seconds'] == first['run_seconds'] + second['run_seconds']
    assert plan['step_seconds'] == pytest.approx(plan['run_seconds'] / 1_000_000)
    assert plan['cost'] == pytest.approx(first['cost'] + second['cost'])
    tokens = 900_000 * 256 * 128 + 100_000 * 64 * 512
    assert plan['tokens_per_second'] == pytest.approx(tokens / plan['run_seconds'])
    assert [first['tokens'], second['tokens'], plan['tokens']] == [900_000 * 256 * 128, 100_000 * 64 * 512, tokens]
    assert (first['steps'], second['steps'], plan['steps']) == (900_000, 100_000, 1_000_000)
    assert plan['epochs'] is first['epochs'] is None  # there is no corpus
    totals = [phase['required_bytes']['total'] for phase in (first, second)]
    assert plan['required_bytes']['total'] == max(totals) and totals[0] != totals[1]
    assert first['flops_per_step'] < plan['flops_per_step'] < second['flops_per_step']


def test_plan_in_phases_ends_with_a_table_of_all_phases(tmp_path: Path, capsys) -> None:
    (tmp_path / 'words.txt').write_text('\n\n'.join(f'The cat sat on mat {i}. It was happy there.' for i in range(300)))
    corpus = ['--config.data.source=text:words.txt', '--config.data.corpus=corpus', '--config.tokenizer.vocab_size=200']
    flags = [f'--config={ROOT}/configs/bert_two_phase.py:tiny', *corpus]
    assert run(['prepare', *flags], tmp_path) == 0
    capsys.readouterr()
    assert run(['plan', *flags, '--target=b200:1x8'], tmp_path) == 0
    headings, first, second, whole, _ = capsys.readouterr().out.splitlines()[-5:]
    assert headings.split()[:7] == ['phase', 'steps', 'rows', 'tokens', 'epochs', 'FLOPs', 'time']
    assert first.split()[:6] == ['1', '900,000', '256', 'x', '128', '29.5B']
    assert second.split()[:6] == ['2', '100,000', '64', 'x', '512', '3.28B']
    assert whole.split()[:3] == ['run', '1,000,000', '32.8B']
    # Of each epoch, all words are read once; a row has a few special tokens more.
    tokens = json.loads((tmp_path / 'corpus' / 'manifest.json').read_text())['splits']['train']['tokens']
    epochs = float(first.split()[6].replace(',', ''))
    assert 0.8 < epochs / (900_000 * 256 * 128 / tokens) < 1.3


def test_planned_memory_is_that_of_the_largest_phase(tmp_path: Path, capsys) -> None:
    """Longer rows with as many tokens need more memory: their scores grow with the square of the length."""
    phases = '{"steps": 5, "sequence_length": 512, "global_batch_size": 64}, {"steps": 5, "sequence_length": 4096}'
    flags = [f'--config={ROOT}/configs/modernbert.py:nano', '--config.model.max_positions=4096']
    flags += ['--config.train.global_batch_size=8', f'--config.phases=({phases})', '--config.optimizer.warmup_steps=0']
    assert run(['plan', *flags, '--target=b200:1x8', '--json'], tmp_path) == 0
    plan = json.loads(capsys.readouterr().out)
    needed = [phase['required_bytes']['total'] for phase in plan['phases']]
    assert needed[0] < needed[1] == plan['required_bytes']['total']
