"""`benchmarks/finetuning.py`: its tasks are valid configs, and its tables show the measurements."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import finetuning, finetuning_tables

FLAGS = {'length': 128, 'learning_rate': 3e-5, 'batch': 16, 'dtype': 'float32', 'epochs': 0.0}


@pytest.mark.parametrize('name', finetuning.TASKS)
def test_flags_of_every_task_are_valid_for_both_programs(name: str, tmp_path: Path) -> None:
    flags = argparse.Namespace(**FLAGS, output=tmp_path)
    config = finetuning.Comparison(name, tmp_path, Path('mine'), None, 5, flags).config()
    assert (config.init, config.task.directory, config.task.sequence_length) == ('mine', str(tmp_path), 128)
    assert (config.optimizer.peak_learning_rate, config.train.global_batch_size) == (3e-5, 16)
    assert config.train.epochs == finetuning.TASKS[name][1]['train.epochs']


@dataclasses.dataclass(frozen=True)
class _Compared:
    name: str
    encoder: Path
    steps: int | None
    by_side: dict[str, list[dict[str, Any]]]
    flags: argparse.Namespace

    def results(self, side: str) -> list[dict[str, Any]]:
        return self.by_side[side]


def _result(f1: float, speed: float, minutes: float) -> dict[str, Any]:
    return {'metrics': {'f1': f1}, 'constant': {'f1': 0.8}, 'examples_per_second': speed, 'minutes': minutes}


def test_tables_have_medians_and_only_complete_tasks(tmp_path: Path) -> None:
    rates = {'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.0}
    (tmp_path / 'config.json').write_text(json.dumps({'num_hidden_layers': 2, 'hidden_size': 128} | rates))
    ours = [_result(0.8, 90.0, 1.0), _result(0.9, 100.0, 1.0), _result(0.7, 80.0, 1.0)]
    theirs = [_result(0.75, 60.0, 2.0)]
    flags = argparse.Namespace(**FLAGS)
    compared = [
        _Compared('mrpc', tmp_path, None, {'bert_jax': ours, 'Trainer': theirs}, flags),
        _Compared('cola', tmp_path, None, {'bert_jax': ours, 'Trainer': []}, flags),
        _Compared('rte', tmp_path, 60, {'bert_jax': ours[:1], 'Trainer': theirs}, flags),
    ]
    rows = [line for line in finetuning_tables.page(compared).splitlines() if line.startswith('| 2 layers')]
    encoder = '2 layers of 128, dropout 0.0 and 0.1'
    assert rows == [
        f'| {encoder} | mrpc | F1 | 80.0 ± 10.0 | 75.0 | +5.0 | 80.0 | 3, 1 |',
        f'| {encoder} | mrpc | 90.0 | 60.0 | 1.50 | 1.0 | 2.0 | 3, 1 |',
        f'| {encoder} | rte | 90.0 | 60.0 | 1.50 | 1.0 | 2.0 | 1 |',
    ]
