"""The benchmark of a GPU resumes what is left, and all of its parts run in small on a CPU."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Part

WRITES = "import json, sys; json.dump({'found': 1}, open(sys.argv[1], 'w'))"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that print a result, write one, fail, and count how often they run."""
    (tmp_path / 'prints.py').write_text("print('a log line'); print('{\"found\": 2}')")
    (tmp_path / 'writes.py').write_text(WRITES)
    (tmp_path / 'fails.py').write_text("import sys; sys.exit('out of memory')")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setattr(gpu, '_ROOT', tmp_path)


@pytest.mark.processes
def test_second_call_repeats_only_what_is_left(modules: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    chosen = [Part('one', ('prints',)), Part('two', ('fails',)), Part('three', ('writes', '{}'))]
    assert gpu.measure(chosen, tmp_path / 'out', minutes=0.0) == {'one': None, 'two': None, 'three': None}
    results = gpu.measure(chosen, tmp_path / 'out', minutes=5.0)
    assert (results['one'] or {})['found'] == 2 and (results['three'] or {})['found'] == 1
    assert (results['two'] or {})['error'] == 'exit status 1\nout of memory'
    (tmp_path / 'fails.py').write_text('print(\'{"found": 3}\')')
    for name in ('prints', 'writes'):
        (tmp_path / f'{name}.py').unlink()
    again = gpu.measure(chosen, tmp_path / 'out', minutes=5.0)
    assert [(again[name] or {})['found'] for name in ('one', 'two', 'three')] == [2, 3, 1]
    assert capsys.readouterr().out.count('done') == 3


def test_tables_have_a_row_for_every_result_and_name_the_others() -> None:
    step = {'turns': [0.1], 'peak_bytes': 2**30, 'peak_flops': 1e12}
    results = {
        'device': {'device': 'NVIDIA H100', 'jax': '0.10'},
        'kernels-base': {'errors': {'auto': 0.02, 'plain': 0.001}, 'is_correct': False},
        'speed-smoke-bert': {
            'smoke-bert': {
                'bert_jax bfloat16': step | {'step_seconds': 0.1},
                'PyTorch bfloat16 compiled': step | {'step_seconds': 0.15},
            }
        },
        'plan-base': {
            'step_seconds': 0.1,
            'predicted_seconds': 0.12,
            'predicted_from_data_sheet_seconds': 0.08,
            'peak_bytes': 2 * 2**30,
            'predicted_bytes': 2**30,
        },
        'speed-base': {'error': 'exit status 1'},
        'speed-large': None,
    }
    text = gpu.tables(results)
    assert '| base | 2.00e-02 | 1.00e-03 | **WRONG** |' in text
    [row] = [line for line in text.splitlines() if line.startswith('| smoke-bert')]
    assert row.split(' | ')[1:3] == ['100.0 ms', '40.0'] and row.endswith('| 1.50 x |')
    assert '| base | 100.0 ms | 120.0 ms (+20%) | 80.0 ms (-20%) | 2.00 GiB | 1.00 GiB |' in text
    assert 'Without a result: speed-base, speed-large' in text


@pytest.mark.slow
@pytest.mark.processes
def test_every_part_runs_in_small_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('torch')
    monkeypatch.setenv('XLA_FLAGS', '')  # one device in the processes of the parts
    gpu.main(['--tiny', f'--output={tmp_path}'])
    results = json.loads((tmp_path / 'gpu.json').read_text())
    assert [name for name, result in results.items() if result is None or 'error' in result] == []
    assert all(result['is_correct'] for name, result in results.items() if name.startswith('kernels'))
    assert 'Without a result' not in (tmp_path / 'gpu.md').read_text()
