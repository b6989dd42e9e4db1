"""`plan`: memory, time and cost of a run on devices that this machine need not have."""

from pathlib import Path

from absl import flags

from bert_jax.cli.devices import select_platform
from bert_jax.cli.flags import CONFIG, Command, Flag, config_of, print_result, required
from bert_jax.config import Config, chooses_max_sequences, is_records, max_sequences
from bert_jax.console import say
from bert_jax.errors import BadInput


def _run(values: flags.FlagValues, _: list[str]) -> int:
    target_name, config = required(COMMAND, values, 'target'), with_sequences(config_of(values))
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
        use_the_cpu()
    from bert_jax.plan import describe, phased, planning, scaling, search, traffic

    if values.search:
        ranking = search.search(config, planning.find_target(target_name, config))
        print_result(values, search.to_json(ranking, values.price), describe.describe_ranking(ranking, values.price))
        return 0
    run = phased.make_run_plan(config, target_name, () if values.scaling else _epochs(config))
    if values.scaling:
        predictions = scaling.predict_scaling(run.plans[0])
        print_result(values, scaling.to_json(predictions), describe.describe_scaling(run.plans[0], predictions))
        return 0
    result, description = run.to_json(values.price), describe.describe_run(run, values.price)
    if values.traffic:
        reports = [traffic.traffic_of(plan) for plan in run.plans]
        result['traffic'] = [report.to_json() for report in reports]
        description = '\n'.join([description, *map(traffic.describe_traffic, reports)])
    print_result(values, result, description)
    return 0


def with_sequences(config: Config) -> Config:
    """Returns the config with `data.max_sequences` chosen from its corpus, as `train` does, or assumed without one."""
    data = config.data
    if not chooses_max_sequences(data):
        return config
    from bert_jax.data.fill import resolve_max_sequences
    from bert_jax.text.corpus import load_corpus, read_manifest

    if read_manifest(Path(data.corpus)) is not None:
        return resolve_max_sequences(config, load_corpus(data.corpus).train)
    for phase in config.in_phases:
        num_sequences, length = max_sequences(phase.data), phase.data.sequence_length
        say(f'No corpus at {data.corpus}: assuming up to {num_sequences} sequences in rows of {length} positions')
    return config


def _epochs(config: Config) -> list[float]:
    """Estimates the epochs of each phase; [] if there is no corpus."""
    from bert_jax.data.epochs import estimate_epochs
    from bert_jax.text.corpus import load_corpus, read_manifest

    corpus = config.data.corpus
    has_corpus = not is_records(config.data.source) and read_manifest(Path(corpus)) is not None
    return estimate_epochs(config, load_corpus(corpus).train) if has_corpus else []


def use_the_cpu() -> None:
    """Keeps jax from waiting for an accelerator: a plan for another machine needs none."""
    import jax

    jax.config.update('jax_platforms', 'cpu')


COMMAND = Command(
    'plan',
    _run,
    'predict memory, time and cost of a run on devices you need not have',
    'bert-jax plan --config=bert.py:base --target=tpu-v5e:4x4 --price=1.20',
    (
        CONFIG,
        Flag(
            'target',
            'tpu-v5e:4x4 (chip and topology), h200:2x8 (hosts x GPUs per host), or here',
            group='essential',
        ),
        Flag('price', 'dollars per device-hour, to compute the cost', flags.DEFINE_float, None, {'lower_bound': 0.0}),
        Flag('search', 'compare meshes, microbatches and remat policies, best first', flags.DEFINE_boolean, False),
        Flag(
            'scaling',
            'predict the efficiency with 8 to 4096 such devices and data parallelism',
            flags.DEFINE_boolean,
            False,
        ),
        Flag('traffic', 'list what the memory traffic of the compiled step is for', flags.DEFINE_boolean, False),
    ),
)
