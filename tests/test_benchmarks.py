"""Benchmarks import names that exist, and the contestants of `make bench` train the same model."""

import ast
import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


@pytest.mark.parametrize('path', sorted(BENCHMARKS.glob('*.py')), ids=lambda path: path.stem)
def test_every_name_that_benchmarks_import_exists(path: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition('.')[0] == 'bert_jax':
            module = importlib.import_module(node.module)
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                is_module = hasattr(module, '__path__') and importlib.util.find_spec(name) is not None
                missing += [] if hasattr(module, alias.name) or is_module else [name]
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize('packing', [False, True])
def test_both_benchmarked_models_have_the_same_losses(packing: bool, tmp_path: Path) -> None:
    pytest.importorskip('torch')
    from benchmarks import workloads

    chosen = workloads.bert_workload(
        'tiny', 8, 32, dropout=0.0, attention_dropout=0.0, num_batches=6, tokenizer__vocab_size=200,
        model__hidden_size=32, model__intermediate_size=64, optimizer__peak_learning_rate=1e-2, data__packing=packing,
    )  # fmt: skip
    _compare_losses(chosen, tmp_path, packing)


@pytest.mark.slow
@pytest.mark.parametrize('packing', [False, True])
def test_benchmarked_modernberts_have_the_same_losses(packing: bool, tmp_path: Path) -> None:
    pytest.importorskip('torch')
    from benchmarks import workloads

    chosen = workloads.PARITY['modernbert']
    data = dataclasses.replace(chosen.config.data, packing=packing)
    optimizer = dataclasses.replace(chosen.config.optimizer, peak_learning_rate=2e-3)
    smaller = dataclasses.replace(chosen.config, data=data, optimizer=optimizer)
    _compare_losses(workloads.Workload(smaller, num_batches=6), tmp_path, packing)


def _compare_losses(chosen: Any, directory: Path, packing: bool) -> None:
    from benchmarks import workloads

    workloads.write(chosen, directory)
    names = ['bert_jax float32', 'PyTorch float32', 'PyTorch bfloat16']
    losses = {name: _losses(name, directory) for name in names + ['Hugging Face float32'] * (not packing)}
    ours = losses.pop('bert_jax float32')
    assert abs(ours[0] - ours[-1]) > 0.05  # it learns, so equal losses are evidence
    for name, theirs in losses.items():
        assert theirs == pytest.approx(ours, rel=2e-2 if 'bfloat16' in name else 1e-4), name


def _losses(name: str, directory: Path) -> list[float]:
    from benchmarks.contestants import CONTESTANTS

    contestant = CONTESTANTS[name]()
    contestant.load(directory)
    assert name.startswith('bert_jax') or contestant.matmul_seconds() > 0
    return contestant.steps(10)
