"""`plan`: memory, time and cost of a run on devices that need not be here."""

from pathlib import Path

from absl import flags

from bert_jax.cli.devices import select_platform
from bert_jax.cli.flags import CONFIG, Command, Flag, config_of, print_result, required
from bert_jax.config import Config, chooses_max_sequences, max_sequences
from bert_jax.console import say
from bert_jax.errors import BadInput


def _run(values: flags.FlagValues, _: list[str]) -> int:
    target_name, config = required(values, 'target'), with_sequences(config_of(values))
    if config.phases and (values.search or values.scaling):
        raise BadInput(
            'config.phases',
            f'has {len(config.phases)} phases',
            'one at a time with --search and --scaling',
            '--config.phases="()" and the fields of a phase, for example --config.data.sequence_length=512',
        )
    if target_name == 'here':
        select_platform(config)
    else:
        _use_the_cpu()
    from bert_jax.plan import describe, phased, planning, scaling, search

    if values.search:
        ranking = search.search(config, planning.find_target(target_name, config))
        print_result(values, search.to_json(ranking, values.price), describe.describe_ranking(ranking, values.price))
        return 0
    run = phased.make_run_plan(config, target_name)
    if values.scaling:
        predictions = scaling.predict_scaling(run.plans[0])
        print_result(values, scaling.to_json(predictions), describe.describe_scaling(run.plans[0], predictions))
        return 0
    print_result(values, run.to_json(values.price), describe.describe_run(run, values.price))
    return 0


def with_sequences(config: Config) -> Config:
    """The config with the sequences of a packed row chosen from its corpus, as `train` does; assumed where none is."""
    data = config.data
    if not chooses_max_sequences(data):
        return config
    from bert_jax.data.fill import resolve_max_sequences
    from bert_jax.text.corpus import load_corpus, read_manifest

    if read_manifest(Path(data.corpus)) is not None:
        return resolve_max_sequences(config, load_corpus(data.corpus).train)
    for phase in config.in_phases:
        number, length = max_sequences(phase.data), phase.data.sequence_length
        say(f'No corpus at {data.corpus}: rows of {length} positions are assumed to hold up to {number} sequences')
    return config


def _use_the_cpu() -> None:
    """A plan for another machine needs no device, and must not wait for one."""
    import jax

    jax.config.update('jax_platforms', 'cpu')


COMMAND = Command(
    'plan',
    _run,
    'whether a run fits devices that need not be here, how long it takes, what it costs',
    'python -m bert_jax plan --config=configs/bert.py:base --target=tpu-v5e:4x4 --price=1.20',
    (
        CONFIG,
        Flag('target', 'tpu-v5e:4x4 (a chip and a topology), h200:2x8 (hosts x GPUs of each), or here'),
        Flag('price', 'price per device-hour, in dollars', flags.DEFINE_float, None, {'lower_bound': 0.0}),
        Flag('search', 'rank meshes, microbatches and remat policies', flags.DEFINE_boolean, False),
        Flag(
            'scaling',
            'predict the efficiency of 8 to 4096 such devices, split over data',
            flags.DEFINE_boolean,
            False,
        ),
    ),
)
