"""`advise`: from a corpus and a budget, how to start, sizes, epochs, expected loss, time, price and commands."""

from absl import flags

from bert_jax.cli.devices import select_platform
from bert_jax.cli.flags import CONFIG, Command, Flag, config_of, print_result
from bert_jax.cli.plan import use_the_cpu

_MORE_THAN_0 = {'lower_bound': 0.01}


def _run(values: flags.FlagValues, _: list[str]) -> int:
    config = config_of(values)
    if values.target == 'here':
        select_platform(config)
    else:
        use_the_cpu()
    from bert_jax.advise.advice import advise
    from bert_jax.advise.describe import describe

    advice = advise(config, values.target, values.hours, values.price)
    print_result(values, advice.to_json(), describe(advice))
    return 0


COMMAND = Command(
    'advise',
    _run,
    'advise on a text and a budget: how to start, sizes, epochs, expected loss, time and price',
    "bert-jax advise --config=demo.py --config.data.source='text:my/*.txt' --hours=4 --target=h100:1x1",
    (
        CONFIG,
        Flag('hours', 'time for training', flags.DEFINE_float, 4.0, _MORE_THAN_0),
        Flag('target', 'devices, named as for `plan`: tpu-v5e:4x4, h100:1x8 or here', default='here'),
        Flag('price', 'dollars per device-hour, to compute the cost', flags.DEFINE_float, None, {'lower_bound': 0.0}),
    ),
)
