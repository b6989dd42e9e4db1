"""Reading compiled programs: loops, slices, batched matmuls, groups and overlap, each compared with a hand count."""

import dataclasses

import pytest

from bert_jax.plan import hlo
from bert_jax.plan.hlo_collectives import Collective
from bert_jax.plan.hlo_parse import Module
from bert_jax.plan.planning import axis_of
from bert_jax.plan.roofline import collective_seconds, step_time
from bert_jax.plan.targets import parse_target

PROGRAM = """\
HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%inner (p.0: f32[5,64,32]) -> f32[64,32] {
  %p.0 = f32[5,64,32]{2,1,0} parameter(0)
  ROOT %slice.1 = f32[64,32]{1,0} slice(%p.0), slice={[0:1], [0:64], [0:32]}
}

%fused (q.0: f32[5,64,32], q.1: f32[32,16]) -> f32[64,16] {
  %q.0 = f32[5,64,32]{2,1,0} parameter(0)
  %q.1 = f32[32,16]{1,0} parameter(1)
  %sliced = f32[64,32]{1,0} fusion(%q.0), kind=kLoop, calls=%inner
  ROOT %dot.1 = f32[64,16]{1,0} dot(%sliced, %q.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%condition (c.0: (s32[], f32[5,64,32], f32[32,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %c.0 = (s32[], f32[5,64,32]{2,1,0}, f32[32,16]{1,0}) parameter(0)
  %index = s32[] get-tuple-element(%c.0), index=0
  ROOT %less = pred[]{:T(512)} compare(%index, %limit), direction=LT, metadata={op_name="while/cond/lt"}
}

%body (d.0: (s32[], f32[5,64,32], f32[32,16])) -> (s32[], f32[5,64,32], f32[32,16]) {
  %d.0 = (s32[], f32[5,64,32]{2,1,0}, /*index=2*/f32[32,16]{1,0}) parameter(0)
  %d.1 = f32[5,64,32]{2,1,0} get-tuple-element(%d.0), index=1
  %d.2 = f32[32,16]{1,0} get-tuple-element(%d.0), index=2
  %count = s32[] get-tuple-element(%d.0), index=0
  %matmul = f32[64,16]{1,0:T(8,128)} fusion(%d.1, %d.2), kind=kOutput, calls=%fused
  %reduce-start = f32[64,16]{1,0} all-reduce-start(%matmul), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%sum
  %batched = f32[8,4,16,16] convolution(%l, %r), window={size=8x4 stride=7x3 lhs_dilate=8x4}, dim_labels=0b1f_0o1i->01bf
  %l = f32[8,16,4,32]{3,2,1,0} broadcast(%count), dimensions={}
  %r = f32[8,16,4,32]{3,2,1,0} broadcast(%count), dimensions={}
  %hidden = f32[16]{0} fusion(%d.2), kind=kLoop, calls=%tiny
  %reduce-done = f32[64,16]{1,0} all-reduce-done(%reduce-start)
  ROOT %next = (s32[], f32[5,64,32]{2,1,0}, f32[32,16]{1,0}) tuple(%count, %d.1, %d.2)
}

%tiny (t.0: f32[32,16]) -> f32[16] {
  %t.0 = f32[32,16]{1,0} parameter(0)
  ROOT %row = f32[16]{0} reduce(%t.0), dimensions={0}, to_apply=%sum
}

ENTRY %main (x.0: f32[5,64,32], x.1: f32[32,16]) -> f32[8,16] {
  %x.0 = f32[5,64,32]{2,1,0} parameter(0)
  %x.1 = f32[32,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[5,64,32]{2,1,0}, f32[32,16]{1,0}) tuple(%zero, %x.0, %x.1)
  %loop = (s32[], f32[5,64,32]{2,1,0}, f32[32,16]{1,0}) while(%start), condition=%condition, body=%body
  %final = f32[32,16]{1,0} get-tuple-element(%loop), index=2
  %gathered = f32[256,16]{1,0} all-gather(%final), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %part = f32[8,16]{1,0} reduce-scatter(%final), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%sum
}
"""


def test_matmuls_count_in_fusions_loops_and_dilated_convolutions() -> None:
    work = hlo.read_work(Module(PROGRAM))
    flops = [(operation.flops, operation.count) for operation in work.operations if operation.flops]
    batch = 8 * 4
    assert flops == [(2 * 64 * 32 * 16, 5), (batch * 2 * 16 * 16 * 32, 5)]
    assert work.unknown_loops == 0


def test_reading_a_slice_of_stacked_weights_counts_the_slice() -> None:
    work = hlo.read_work(Module(PROGRAM))
    moved = next(operation.bytes for operation in work.operations if operation.flops == 2 * 64 * 32 * 16)
    assert moved == 4 * (64 * 32 + 32 * 16 + 64 * 16)


def test_collectives_report_bytes_counts_groups_and_overlap() -> None:
    work = hlo.read_work(Module(PROGRAM))
    beside = tuple(range(1, 5))  # `batched`, `l`, `r` and `hidden`, after `matmul`
    assert work.collectives == (
        Collective('all-reduce', ((0, 4), (1, 5), (2, 6), (3, 7)), 64 * 16 * 4, 5, beside),
        Collective('all-gather', (tuple(range(8)),), 32 * 16 * 4 * 8, 1),
        Collective('reduce-scatter', ((0, 1, 2, 3), (4, 5, 6, 7)), 32 * 16 * 4, 1),
    )
    assert [collective.overlapped for collective in work.collectives] == [True, False, False]


def test_groups_are_named_by_the_axes_along_which_they_differ() -> None:
    axes = [
        axis_of(collective, {'data': 2, 'fsdp': 2, 'tensor': 2})
        for collective in hlo.read_work(Module(PROGRAM)).collectives
    ]
    assert axes == ['data', 'data+fsdp+tensor', 'fsdp+tensor']


def test_all_reduce_between_hosts_uses_one_network_after_the_other() -> None:
    target = parse_target('h200:2x8')
    device = target.device
    on_one_host = Collective('all-reduce', (tuple(range(8)),), 10**9, 1)
    on_two_hosts = Collective('all-reduce', (tuple(range(16)),), 10**9, 1)
    within_host = 2 * 7 / 8 * 10**9 / (device.link_bandwidth * device.link_efficiency)
    assert collective_seconds(on_one_host, target) == within_host + device.latency_seconds
    between_hosts = 2 * (10**9 / 8) / 2 / (device.network_bandwidth * device.link_efficiency)
    expected = within_host + between_hosts + 2 * device.latency_seconds
    assert collective_seconds(on_two_hosts, target) == pytest.approx(expected)


def test_exchange_is_hidden_only_by_what_runs_beside_it() -> None:
    target = parse_target('h100:1x8')
    exchange = Collective('all-reduce', (tuple(range(8)),), 10**9, 1)
    seconds = collective_seconds(exchange, target)
    half = seconds / 2 * target.device.memory_bandwidth * target.device.memory_efficiency  # bytes
    operations = (hlo.Operation(0.0, half, 1), hlo.Operation(0.0, 9 * half, 1))

    def times(*beside: tuple[int, ...]) -> tuple[float, float]:
        collectives = tuple(dataclasses.replace(exchange, beside=each) for each in beside)
        time = step_time(hlo.Work(operations, collectives, 0), target, 'bfloat16')
        assert time.total == pytest.approx(5 * seconds + time.exposed)
        return time.exposed / seconds, time.overlapped / seconds

    assert times(()) == pytest.approx((1, 0))
    assert times((0,)) == pytest.approx((0.5, 0.5))
    assert times((0, 1)) == pytest.approx((0, 1))
    assert times((0,), (0,)) == pytest.approx((1.5, 0.5))  # both wait for the same link


_CUBLAS = """\
ENTRY %main (x: bf16[512,64], w: bf16[64,32]) -> (bf16[512,32], s8[4194304]) {
  %x = bf16[512,64]{1,0} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  ROOT %y = (bf16[512,32]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
}
"""


def test_matmul_of_cublas_counts_its_flops_and_not_its_workspace() -> None:
    (operation,) = hlo.read_work(Module(_CUBLAS)).operations
    assert operation.flops == 2 * 512 * 64 * 32
    assert operation.bytes == 2 * (512 * 64 + 64 * 32 + 512 * 32)


_PREFETCH = """\
ENTRY %main (x: f32[4,64,32], y: f32[64,32]) -> f32[64,32] {
  %x = f32[4,64,32]{2,1,0} parameter(0)
  %y = f32[64,32]{1,0} parameter(1)
  %s = ((f32[4,64,32]{2,1,0}), f32[1,64,32]{2,1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1], [0:64], [0:32]}
  %part = f32[1,64,32]{2,1,0:S(1)} slice-done(%s)
  %c = (f32[64,32]{1,0:S(1)}, f32[64,32]{1,0}, u32[]{:S(2)}) copy-start(%y)
  %near = f32[64,32]{1,0:S(1)} copy-done(%c)
  %b = f32[64,32]{1,0:S(1)} bitcast(%part)
  %sum = f32[64,32]{1,0:S(1)} add(%b, %near)
  %out = (f32[64,32]{1,0}, f32[64,32]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%sum)
  ROOT %far = f32[64,32]{1,0} copy-done(%out)
}
"""


def test_copies_to_and_from_on_chip_memory_count_once() -> None:
    assert [operation.bytes for operation in hlo.read_work(Module(_PREFETCH)).operations] == 3 * [4 * 64 * 32]


_GATHER = """\
%taken (t: f32[1000,32], b: f32[32], i: s32[8,1]) -> f32[8,32] {
  %t = f32[1000,32]{1,0} parameter(0)
  %b = f32[32]{0} parameter(1)
  %i = s32[8,1]{1,0} parameter(2)
  %wide = f32[1000,32]{1,0} broadcast(%b), dimensions={1}
  %added = f32[1000,32]{1,0} add(%t, %wide)
  ROOT %rows = f32[8,32]{1,0} gather(%added, %i), offset_dims={1}, slice_sizes={1,32}
}

%hashed (h: u32[8,32]) -> pred[8,32] {
  %h = u32[8,32]{1,0} parameter(0)
  %shifted = u32[8,32]{1,0} shift-right-logical(%h, %h)
  %mixed = u32[8,32]{1,0} xor(%h, %shifted)
  ROOT %kept = pred[8,32]{1,0} compare(%mixed, %h), direction=GE
}

ENTRY %main (w: f32[1000,32], y: f32[32], j: s32[8,1], k: u32[8,32]) -> f32[8,32] {
  %w = f32[1000,32]{1,0} parameter(0)
  %y = f32[32]{0} parameter(1)
  %j = s32[8,1]{1,0} parameter(2)
  %k = u32[8,32]{1,0} parameter(3)
  %dropped = pred[8,32]{1,0} fusion(%k), kind=kLoop, calls=%hashed
  ROOT %looked_up = f32[8,32]{1,0} fusion(%w, %y, %j), kind=kLoop, calls=%taken
}
"""


def test_rows_behind_a_gather_are_all_that_a_fusion_reads_and_computes() -> None:
    _, gather = hlo.read_work(Module(_GATHER)).operations
    assert gather.bytes == 4 * (8 * 32 + 32 + 8 + 8 * 32)
    assert (gather.simple, gather.integer) == (8 * 32, 0)


def test_operations_on_integers_take_their_own_time() -> None:
    hashing, _ = hlo.read_work(Module(_GATHER)).operations
    assert (hashing.simple, hashing.integer) == (0, 3 * 8 * 32)
    target = parse_target('h100:1x8')
    many = hlo.Work((hlo.Operation(0.0, 0.0, 1, integer=1e12),), (), 0)
    assert step_time(many, target, 'bfloat16').memory == 1e12 / target.device.integer_rate


_CALL = """\
ENTRY %main (qkv: bf16[2,256,3,4,64], ids: s32[2,256]) -> bf16[2,256,1,4,64] {{
  %ids = s32[2,256]{{1,0}} parameter(1)
  %qkv = bf16[2,256,3,4,64]{{4,3,2,1,0}} parameter(0)
  ROOT %kernel = bf16[2,256,1,4,64]{{4,3,2,1,0}} custom-call(%ids, %qkv, %qkv, %qkv), {}
}}
"""
_TRITON = 'custom_call_target="__gpu$xla.gpu.triton", metadata={{op_name="{}/pallas_call"}}'
_MATMUL_FLOPS, _NUM_SCORES = 2 * 2 * 4 * 256 * 256 * 64, 2 * 4 * 256 * 256


@pytest.mark.parametrize(
    'call, num_matmuls, num_exponentials',
    [
        (_TRITON.format(f'jit(step)/attention_forward_of_{256 * 256}_scores'), 2, 1),
        (_TRITON.format(f'transpose/attention_backward_of_{256 * 256}_scores'), 7, 2),
        (_TRITON.format(f'attention_backward_of_{256 * 64}_scores'), 7 / 4, 2 / 4),  # a window
        (_TRITON.format('something_else'), 0, 0),
        (
            'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":'
            f'{{"flops":"{5 * _MATMUL_FLOPS}","transcendentals":"{_NUM_SCORES}","bytes_accessed":"9"}}}}}}',
            5,
            1,
        ),
    ],
)
def test_matmuls_inside_attention_kernels_are_counted(call: str, num_matmuls: float, num_exponentials: float) -> None:
    (operation,) = hlo.read_work(Module(_CALL.format(call))).operations
    assert operation.flops == num_matmuls * _MATMUL_FLOPS
    assert operation.transcendental == num_exponentials * _NUM_SCORES
    assert operation.bytes == 2 * 256 * (4 * 4 * 64 * 2 + 4)
