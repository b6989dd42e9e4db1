"""`benchmarks/finetuning.py`: its tasks are valid configs, and its table shows the measurements."""

import argparse
from pathlib import Path

import pytest

from benchmarks import finetuning


@pytest.mark.parametrize('name', finetuning.TASKS)
def test_flags_of_every_task_are_valid_for_both_programs(name: str, tmp_path: Path) -> None:
    flags = argparse.Namespace(
        encoder=Path('mine'), length=128, learning_rate=3e-5, batch=16, dtype='float32', epochs=0.0, output=tmp_path
    )
    config = finetuning.Comparison(name, tmp_path, flags).config()
    assert (config.init, config.task.directory, config.task.sequence_length) == ('mine', str(tmp_path), 128)
    assert (config.optimizer.peak_learning_rate, config.train.global_batch_size) == (3e-5, 16)
    assert config.train.epochs == finetuning.TASKS[name][1]['train.epochs']


def test_table_has_medians_and_only_complete_tasks() -> None:
    ours = [
        {'metric': m, 'examples_per_second': s, 'minutes': 1.0} for m, s in ((0.8, 90.0), (0.9, 100.0), (0.7, 80.0))
    ]
    theirs = [{'metric': 0.75, 'examples_per_second': 60.0, 'minutes': 2.0}]
    shown = finetuning.table({'mrpc': {'bert_jax': ours, 'Trainer': theirs}, 'cola': {'bert_jax': ours, 'Trainer': []}})
    assert shown.splitlines()[2:] == ['| mrpc | 90.0 | 60.0 | 1.50 | 80.0 ± 10.0 | 75.0 | 3, 1 | 1.0 | 2.0 |']
