"""Lines per step: cut, damaged and later lines are removed when the file is opened."""

from etils import epath

from bert_jax.workdir.step_lines import StepLines


def test_damaged_and_later_lines_are_removed(tmp_path, capsys) -> None:
    path = tmp_path / 'metrics.jsonl'
    sound = ['{"step": 1, "loss": 1.0}', '{"step": 3, "loss": 3.0}']
    damaged = ['{"step": 2, "loss":\r2.0}', '{"step": "2"}', '[', '{"loss": 1}']
    ahead, cut = '{"step": 4, "loss": 4.0}', '{"step": 3, "lo'
    path.write_bytes('\n'.join([sound[0], *damaged, sound[1], ahead, cut]).encode())
    lines = StepLines(epath.Path(path), 3)
    lines.write(4, {'loss': 0.5})
    lines.close()
    assert lines.newest == 4
    assert 'removed 4 damaged lines, starting at line 2' in capsys.readouterr().err
    assert path.read_text().splitlines() == [*sound, '{"step": 4, "loss": 0.5}']
