"""The traffic report: every instruction gets the category of the code that it was traced from."""

import dataclasses
from collections import Counter

import jax
import pytest

from bert_jax.plan import hlo, planning, program, targets
from bert_jax.plan.hlo_categories import CATEGORIES
from bert_jax.plan.hlo_parse import Module
from bert_jax.plan.traffic import describe_traffic, traffic_of
from tests.support.configs import planned_run

# A loop over 4 layers that makes activations [8, 16], their norm, and stacks both; the parents are as XLA prints them.
PROGRAM = """\
HloModule step, is_scheduled=true

FileNames
1 "/somewhere/bert_jax/model/layers.py"
2 "/somewhere/bert_jax/model/layer_stack.py"
3 "/somewhere/bert_jax/train/step.py"

FunctionNames
1 "EncoderLayer.__call__"
2 "gelu"
3 "LayerNorm.__call__"
4 "run_layers.<locals>.layer_of.<locals>.run"
5 "apply_gradients"

FileLocations
1 {file_name_id=2 function_name_id=4 line=1}
2 {file_name_id=1 function_name_id=1 line=2}
3 {file_name_id=1 function_name_id=2 line=3}
4 {file_name_id=1 function_name_id=3 line=4}
5 {file_name_id=3 function_name_id=5 line=5}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=3}
5 {file_location_id=5 parent_frame_id=1}

%mostly_norm (a.0: f32[8,16]) -> bf16[8,16] {
  %a.0 = f32[8,16]{1,0} parameter(0)
  %a.1 = bf16[8,16]{1,0} convert(%a.0), metadata={op_name="jvp()/convert" stack_frame_id=3}
  %a.2 = bf16[8,16]{1,0} multiply(%a.1, %a.1), metadata={op_name="jvp()/mul" stack_frame_id=4}
  ROOT %a.3 = bf16[8,16]{1,0} add(%a.2, %a.1), metadata={op_name="jvp()/add" stack_frame_id=4}
}

%backward (b.0: bf16[8,16]) -> bf16[8,16] {
  %b.0 = bf16[8,16]{1,0} parameter(0)
  ROOT %b.1 = bf16[8,16]{1,0} multiply(%b.0, %b.0), metadata={op_name="transpose(jvp())/mul" stack_frame_id=3}
}

%stacked (c.0: bf16[4,8,16], c.1: s32[], c.2: bf16[8,16]) -> bf16[4,8,16] {
  %c.0 = bf16[4,8,16]{2,1,0} parameter(0)
  %c.1 = s32[] parameter(1)
  %c.2 = bf16[8,16]{1,0} parameter(2)
  %c.3 = bf16[1,8,16]{2,1,0} bitcast(%c.2)
  %c.4 = s32[] constant(0)
  ROOT %c.5 = bf16[4,8,16]{2,1,0} dynamic-update-slice(%c.0, %c.3, %c.1, %c.4, %c.4), metadata={stack_frame_id=1}
}

%sliced (d.0: bf16[4,8,16], d.1: s32[]) -> bf16[8,16] {
  %d.0 = bf16[4,8,16]{2,1,0} parameter(0)
  %d.1 = s32[] parameter(1)
  %d.2 = s32[] constant(0)
  %d.3 = bf16[1,8,16]{2,1,0} dynamic-slice(%d.0, %d.1, %d.2, %d.2), dynamic_slice_sizes={1,8,16}
  ROOT %d.4 = bf16[8,16]{1,0} bitcast(%d.3)
}

%condition (e.0: (s32[], bf16[4,8,16], f32[8,16])) -> pred[] {
  %e.0 = (s32[], bf16[4,8,16]{2,1,0}, f32[8,16]{1,0}) parameter(0)
  %e.1 = s32[] get-tuple-element(%e.0), index=0
  %e.2 = s32[] constant(4)
  ROOT %e.3 = pred[] compare(%e.1, %e.2), direction=LT
}

%body (f.0: (s32[], bf16[4,8,16], f32[8,16])) -> (s32[], bf16[4,8,16], f32[8,16]) {
  %f.0 = (s32[], bf16[4,8,16]{2,1,0}, f32[8,16]{1,0}) parameter(0)
  %f.1 = s32[] get-tuple-element(%f.0), index=0
  %f.2 = bf16[4,8,16]{2,1,0} get-tuple-element(%f.0), index=1
  %f.3 = f32[8,16]{1,0} get-tuple-element(%f.0), index=2
  %f.4 = bf16[8,16]{1,0} fusion(%f.3), kind=kLoop, calls=%mostly_norm
  %f.5 = bf16[4,8,16]{2,1,0} fusion(%f.2, %f.1, %f.4), kind=kLoop, calls=%stacked
  %f.6 = bf16[8,16]{1,0} fusion(%f.5, %f.1), kind=kLoop, calls=%sliced
  %f.7 = bf16[8,16]{1,0} fusion(%f.6), kind=kLoop, calls=%backward
  %f.8 = bf16[16,16] dot(%f.7, %f.6), lhs_contracting_dims={0}, rhs_contracting_dims={0}, metadata={stack_frame_id=2}
  ROOT %f.9 = (s32[], bf16[4,8,16]{2,1,0}, f32[8,16]{1,0}) tuple(%f.1, %f.5, %f.3)
}

%kept (g.0: f32[8,16]) -> f32[8,16] {
  ROOT %g.0 = f32[8,16]{1,0} parameter(0)
}

%updated (h.0: f32[8,16]) -> f32[8,16] {
  %h.0 = f32[8,16]{1,0} parameter(0)
  ROOT %h.1 = f32[8,16]{1,0} add(%h.0, %h.0), metadata={op_name="cond/branch_1_fun/add" stack_frame_id=5}
}

ENTRY %main (x.0: f32[8,16], x.1: pred[]) -> f32[8,16] {
  %x.0 = f32[8,16]{1,0} parameter(0)
  %x.1 = pred[] parameter(1)
  %zero = bf16[] constant(0)
  %index = s32[] constant(0)
  %stack = bf16[4,8,16]{2,1,0} broadcast(%zero), dimensions={}
  %reserved = bf16[4,8,16]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %start = (s32[], bf16[4,8,16]{2,1,0}, f32[8,16]{1,0}) tuple(%index, %stack, %x.0)
  %loop = (s32[], bf16[4,8,16]{2,1,0}, f32[8,16]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %new = f32[8,16]{1,0} conditional(%x.1, %x.0, %x.0), true_computation=%updated, false_computation=%kept
}
"""


def test_each_instruction_counts_for_the_code_that_it_was_traced_from() -> None:
    used = Counter[str]()
    for operation in hlo.read_work(Module(PROGRAM)).operations:
        used[operation.category] += operation.bytes * operation.count
    array = 8 * 16  # elements
    assert used == {
        'scan: zero-filling': 4 * 2 * array + 2,
        'norm, dropout, residual forward': 4 * (4 + 2) * array,
        'scan: stacking': 4 * (2 + 2) * array + 4 * 4,  # with its index
        'scan: slicing': 4 * (2 + 2) * array + 4 * 4,
        'activation backward': 4 * (2 + 2) * array,
        'matmuls forward': 4 * 2 * (2 * array + 16 * 16),
        'optimizer': 4 * 2 * array,  # an operand that is read twice counts once
    }
    assert set(used) <= set(CATEGORIES)


@pytest.mark.compiles
def test_report_of_a_compiled_step_adds_up_to_its_traffic() -> None:
    chosen, target = planned_run(), targets.parse_target('h200:1x1')
    compiled, _ = program.compile_step(chosen, jax.devices()[:1])
    plan = planning.analytic_plan(chosen, target)
    report = traffic_of(dataclasses.replace(plan, program=compiled))
    assert sum(report.used.values()) * report.unit_bytes == pytest.approx(compiled.work.memory_bytes)
    assert report.used['optimizer'] > 0 and report.used['matmuls backward'] > report.used['matmuls forward'] > 0
    assert report.used.get('other', 0.0) < 0.05 * sum(report.used.values())
    assert report.largest[0][0] == max(moved for moved, *_ in report.largest)
    lines = describe_traffic(report).splitlines()
    assert any(line.split()[:2] == ['total', f'{sum(report.used.values()):.1f}'] for line in lines)


def test_floor_of_bert_is_the_one_counted_by_hand() -> None:
    """98 u of the layers at a large batch: matmuls 48, attention 12, norms 18, gelu 20; and the parameters' traffic."""
    chosen = planned_run(**{'train.global_batch_size': 2**14, 'data.packing': False})
    floor = traffic_of(planning.analytic_plan(chosen, targets.parse_target('h200:1x1'))).floor
    in_layers = [name for name in floor if name.partition(' ')[0] in ('matmuls', 'attention', 'norm,', 'activation')]
    assert sum(floor[name] for name in in_layers) == pytest.approx(48 + 12 + 18 + 20, rel=0.01)
    parameters = planning.analytic_plan(chosen, targets.parse_target('h200:1x1')).estimate.parameter_bytes // 4
    unit = 2 * 2**14 * chosen.data.sequence_length * chosen.model.hidden_size * chosen.model.num_layers
    assert floor['optimizer'] == pytest.approx(28 * parameters / unit, rel=1e-3)
