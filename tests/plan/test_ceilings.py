"""The memory traffic of compiled steps stays below its ceilings (`make test-plan`).

A figure above its ceiling is a regression; the test then prints what `plan --traffic` does. Lower a ceiling when an
improvement lands.
"""

import pytest

from bert_jax import config
from bert_jax.plan import planning, program, targets
from bert_jax.plan.program import QUICK
from bert_jax.plan.traffic import describe_traffic, traffic_of

pytestmark = pytest.mark.plan

# (target, family, size, layers): u (see `plan/traffic.py`) of all traffic without collectives. With 3 layers, what
# happens once in a step weighs more than in the published sizes.
CEILINGS = {
    ('h200:1x8', 'bert', 'base', 12): 134.0,
    ('h200:1x8', 'bert', 'base', 3): 183.0,
    ('h200:1x8', 'bert', 'large', 3): 237.0,
    ('h200:1x8', 'modernbert', 'base', 3): 277.0,
    ('tpu-v5e:4x4', 'bert', 'base', 3): 176.0,
    ('tpu-v5e:4x4', 'bert', 'large', 3): 220.0,
    ('tpu-v5e:4x4', 'modernbert', 'base', 3): 280.0,
}
_ROWS = {'base': 32, 'large': 16}  # of a device, of 512 tokens; half as many of 1024
_GET_CONFIG = {'bert': config.bert, 'modernbert': config.modernbert}


@pytest.mark.parametrize('name, family, size, num_layers', list(CEILINGS))
def test_traffic_stays_below_its_ceiling(name: str, family: str, size: str, num_layers: int) -> None:
    target = targets.parse_target(name)
    if install := program.missing_compiler(target):
        pytest.skip(f'the compiler is not installed: {install}')
    length = {'bert': 512, 'modernbert': 1024}[family]
    chosen = _GET_CONFIG[family](size)
    chosen.phases = ()
    chosen.update_from_flattened_dict(
        {
            'model.num_layers': num_layers,
            'model.dtype': 'bfloat16',
            'data.sequence_length': length,
            'train.global_batch_size': _ROWS[size] * 512 // length * target.num_devices,
            'train.microbatches': 1,
        }
    )
    report = traffic_of(planning.make_plan(config.resolve(chosen), target, QUICK))
    assert sum(report.used.values()) <= CEILINGS[name, family, size, num_layers], describe_traffic(report)
