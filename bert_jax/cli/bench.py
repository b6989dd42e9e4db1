"""`bench`: the speed of the real train step on this machine."""

from absl import flags

from bert_jax.cli.devices import select_platform
from bert_jax.cli.flags import CONFIG, Command, Flag, config_of, print_result


def _run(values: flags.FlagValues, _: list[str]) -> int:
    config = config_of(values)
    select_platform(config)
    from bert_jax.plan.bench import bench, describe

    result = bench(config, values.seconds)
    print_result(values, result.to_json(), describe(result))
    return 0


COMMAND = Command(
    'bench',
    _run,
    'measure speed and memory of the train step on this machine',
    'bert-jax bench --config=bert.py:mini --config.train.global_batch_size=32',
    (CONFIG, Flag('seconds', 'seconds to measure, after compilation', flags.DEFINE_float, 20.0, {'lower_bound': 0.0})),
)
