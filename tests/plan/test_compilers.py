"""The compilers for absent devices (`make test-plan`) agree with the counts of `plan`."""

import dataclasses
import itertools
import os
import re
import subprocess
import sys

import pytest

from bert_jax.plan import planning, program, targets
from bert_jax.plan.program import QUICK
from tests.support.configs import planned_run

pytestmark = pytest.mark.plan


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.getbasetemp() / 'cache'))


def _target(name: str) -> targets.Target:
    """Returns a target; skips the test if it is a GPU whose compiler is not installed (PLAN_EXTRAS=plan-tpu)."""
    target = targets.parse_target(name)
    if target.device.kind == 'gpu' and (install := program.missing_compiler(target)):
        pytest.skip(f'the compiler is not installed: {install}')
    return target


@pytest.mark.parametrize(
    'family, name',
    [
        ('bert', 'tpu-v4:2x2x1'),
        ('bert', 'tpu-v5e:2x2'),
        ('modernbert', 'tpu-v5e:2x2'),
        ('eurobert', 'tpu-v5e:2x2'),
        ('bert', 'tpu-v5p:2x2x1'),
        ('bert', 'tpu-v6e:2x2'),
        ('bert', 'h200:1x4'),
        ('modernbert', 'h200:1x4'),
        ('eurobert', 'h200:1x4'),
        ('bert', 'a100:2x2'),
    ],
)
def test_compiled_step_agrees_with_the_counts_on_each_device(family: str, name: str) -> None:
    target = _target(name)
    plan = planning.make_plan(planned_run(family, **{'model.dtype': 'bfloat16'}), target, QUICK)
    assert plan.is_compiled and plan.fits and not plan.program.work.unknown_loops
    assert plan.program.work.matmul_flops == pytest.approx(plan.estimate.work.matmul_flops, rel=0.05)
    state = plan.estimate.parameter_bytes + plan.estimate.optimizer_bytes
    assert plan.program.arguments >= state  # a TPU pads arrays to its tiles
    assert {collective['axis'] for collective in plan.collectives()} == {'data'}


def test_gpu_mesh_exchanges_over_each_of_its_axes() -> None:
    chosen = planned_run(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
    plan = planning.make_plan(chosen, _target('h100:1x8'), QUICK)
    axes = set(itertools.chain.from_iterable(collective['axis'].split('+') for collective in plan.collectives()))
    assert axes == {'data', 'fsdp', 'tensor'}


def test_step_that_does_not_fit_reports_the_bytes_it_needs() -> None:
    whole_tiles = {  # dims that a TPU does not pad
        'data.sequence_length': 128,
        'model.max_positions': 128,
        'model.hidden_size': 128,
        'model.intermediate_size': 512,
    }
    many_rows = {'train.global_batch_size': 2**14, 'model.num_layers': 8, 'model.dtype': 'bfloat16'}
    chosen = planned_run(**whole_tiles, **many_rows)
    plan = planning.make_plan(chosen, targets.parse_target('tpu-v5e:1x1'), QUICK)
    assert plan.program.rejection and not plan.fits and not plan.is_compiled
    assert plan.required_bytes['total'] == pytest.approx(plan.estimate.total_bytes, rel=0.1)


def test_compiled_program_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, target = planned_run(), targets.parse_target('tpu-v5e:1x1')
    first = program.compile_for(chosen, target)
    monkeypatch.setattr('subprocess.run', None)
    assert program.compile_for(chosen, target) == first
    assert dataclasses.replace(first, seconds=0.0) != first


_PRINT_PROGRAM = """
import sys
from bert_jax.plan import program, targets
from tests.support.configs import planned_run
changes = {'model.hidden_size': 128, 'model.num_heads': 4, 'model.max_positions': 512, 'data.sequence_length': 512}
changes |= {'data.packing': True, 'mesh.data': -1, 'mesh.tensor': 2, 'model.remat': 'dots', 'model.dtype': 'bfloat16'}
chosen = planned_run(sys.argv[1], **changes, **{'model.attention': 'fused'})
_, compiled = program.compile_step(chosen, program._devices(targets.parse_target(sys.argv[2])), 'quick')
print(compiled.as_text())
"""


@pytest.mark.parametrize(
    'family, name, kernel',
    [
        ('bert', 'tpu-v5e:2x2', 'tpu_custom_call'),
        ('modernbert', 'tpu-v5e:2x2', 'attention_backward'),  # local layers
        ('bert', 'h100:1x8', f'attention_backward_of_{512 * 512}_scores'),
        ('modernbert', 'h200:1x8', r'attention_backward_of_\d{5}_scores'),  # local layers
    ],
)
def test_program_stores_no_attention_scores(family: str, name: str, kernel: str) -> None:
    """With dropout of attention weights (BERT), packed rows, heads split over `tensor`, and recomputed layers."""
    target = _target(name)
    environment = os.environ | program._environment(target)
    command = [sys.executable, '-c', _PRINT_PROGRAM, family, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert re.search(kernel, done.stdout), done.stderr[-2000:]
    assert not re.search(r'\[[\d,]+,512,512\]', done.stdout)


_PRINT_LOOP = """
import sys
from bert_jax.plan import program, targets
from tests.support.configs import planned_run
family, target = sys.argv[1:]
chosen = planned_run(family, **{'model.dtype': 'bfloat16'})  # 3 or 6 layers in a loop
_, compiled = program.compile_step(chosen, program._devices(targets.parse_target(target)), 'quick')
print(compiled.as_text())
"""


@pytest.mark.parametrize('name', ['h200:1x4', 'tpu-v5e:2x2'])
@pytest.mark.parametrize('family', ['bert', 'modernbert', 'eurobert'])
def test_loop_over_layers_keeps_no_activations_in_float32(family: str, name: str) -> None:
    target = _target(name)
    done = subprocess.run(
        [sys.executable, '-c', _PRINT_LOOP, family, name],
        env=os.environ | program._environment(target),
        capture_output=True,
        text=True,
    )
    stacks = set(re.findall(r'(\w+)\[[236],4,32,(?:64|256)\]', done.stdout))  # of 4 rows of 32 positions
    assert stacks == {'bf16'}, done.stderr[-2000:]


@pytest.mark.parametrize('name', ['tpu-v5e:1x1', 'h100:1x1'])
def test_memory_of_long_rows_grows_linearly(name: str) -> None:
    """Kernels store no scores, whether layers are local or global."""
    target = _target(name)

    def temporary_bytes(length: int) -> int:
        changes = {'data.sequence_length': length, 'model.max_positions': length, 'train.global_batch_size': 1}
        changes |= {'data.packing': True, 'data.max_sequences': 8, 'data.max_predictions': 64}
        changes |= {'model.num_layers': 2, 'model.local_attention': 128, 'model.dtype': 'bfloat16'}
        return program.compile_for(planned_run('modernbert', **changes), target, QUICK).temporaries

    short, middle, long = map(temporary_bytes, (2048, 4096, 8192))
    assert (long - middle) / (2 * (middle - short)) == pytest.approx(1, abs=0.25)  # with the square it would be 2
