"""Rows of thousands of positions: memory grows linearly with them, except in global layers without a kernel."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.config import resolve
from bert_jax.config.families import FULL, SLIDING
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.memory import lower_step
from tests.support.configs import as_flags, planned_run
from tests.support.processes import ROOT
from tests.support.runs import metric_lines
from tests.support.texts import write_text

LENGTHS = (2048, 4096, 8192)


def _fields(length: int, kinds: tuple[str, ...]) -> dict[str, object]:
    """Returns the changes of a run whose batch is one long row."""
    return {
        'data.sequence_length': length,
        'data.packing': True,
        'data.max_sequences': 8,
        'data.max_predictions': 64,
        'model.max_positions': length,
        'model.num_layers': len(kinds),
        'model.layer_types': kinds,
        'model.local_attention': 128,
        'model.scan_layers': False,
        'train.global_batch_size': 1,
    }


def _grows_linearly(sizes: list[int]) -> bool:
    """Returns whether sizes at `LENGTHS` are linear in the length, up to a tenth."""
    return abs((sizes[2] - sizes[1]) / (2 * (sizes[1] - sizes[0])) - 1) < 0.1


@pytest.mark.compiles
@pytest.mark.slow
def test_step_of_local_layers_needs_memory_linear_in_length() -> None:
    """Of the whole train step; with a global layer, it needs the scores of all pairs on a CPU."""

    def temporary_bytes(length: int, *kinds: str) -> int:
        run = planned_run('modernbert', **_fields(length, kinds))
        mesh = make_mesh(run.mesh, run.model, run.train, jax.devices()[:1])
        compiled = lower_step(run, mesh, run.tokenizer.vocab_size).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert _grows_linearly([temporary_bytes(length, SLIDING, SLIDING) for length in LENGTHS])
    assert not _grows_linearly([temporary_bytes(length, SLIDING, FULL) for length in LENGTHS])


@pytest.mark.slow
@pytest.mark.processes
def test_small_modernbert_trains_in_rows_of_8192_positions(tmp_path: Path) -> None:
    """The smallest shipped config, whose first layer is global: one row a step, which needs less than 2 GB."""
    write_text(tmp_path / 'text.txt', num_documents=600)
    fields = {
        'data.source': f'text:{tmp_path}/text.txt',
        'data.corpus': f'{tmp_path}/corpus',
        'data.sequence_length': 8192,
        'model.max_positions': 8192,
        'tokenizer.vocab_size': 500,
        'train.steps': 4,
        'train.global_batch_size': 1,
        'train.log_every': 1,
        'train.evaluate_every': 0,
        'optimizer.warmup_steps': 2,
    }
    path = f'{ROOT}/configs/modernbert.py'
    flags = as_flags(fields, f'{path}:nano')
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}  # one device
    for command in (['prepare'], ['train', f'--workdir={tmp_path}/run']):
        subprocess.run([sys.executable, '-m', 'bert_jax', *command, *flags], env=environment, cwd=ROOT, check=True)
    losses = [line['loss'] for line in metric_lines(tmp_path / 'run') if 'loss' in line]
    assert len(losses) == 4 and np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.2
    chosen = runpy.run_path(path)['get_config']('nano')
    chosen.update_from_flattened_dict({**fields, 'model.dtype': 'float32'})
    run = resolve(chosen).in_phases[0]
    compiled = lower_step(run, make_mesh(run.mesh, run.model, run.train, jax.devices()[:1]), 512).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2e9  # jax may hold those of several steps at once
