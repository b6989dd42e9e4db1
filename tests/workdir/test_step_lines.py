"""A file of lines about steps: what a kill cut short, what is damaged and what lies ahead goes, and is told."""

from etils import epath

from bert_jax.workdir.step_lines import StepLines


def test_lines_that_are_damaged_or_ahead_go(tmp_path, capsys) -> None:
    path = tmp_path / 'metrics.jsonl'
    sound = ['{"step": 1, "loss": 1.0}', '{"step": 3, "loss": 3.0}']
    damaged = ['{"step": 2, "loss":\r2.0}', '{"step": "2"}', '[', '{"loss": 1}']
    ahead, cut = '{"step": 4, "loss": 4.0}', '{"step": 3, "lo'
    path.write_bytes('\n'.join([sound[0], *damaged, sound[1], ahead, cut]).encode())
    lines = StepLines(epath.Path(path), 3)
    lines.write(4, {'loss': 0.5})
    lines.close()
    assert lines.newest == 4
    assert '4 damaged lines are left out, the first is line 2' in capsys.readouterr().err
    assert path.read_text().splitlines() == [*sound, '{"step": 4, "loss": 0.5}']
