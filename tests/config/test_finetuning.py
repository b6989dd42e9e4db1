"""A wrong fine-tuning config is rejected by field, and defaults shared with pretraining are equal."""

import dataclasses
import json

import pytest

from bert_jax import config
from bert_jax.cli.finetune import COMMAND
from bert_jax.cli.flags import fields_of, parse
from bert_jax.config import finetuning_models
from bert_jax.config.embedding import check_dims
from bert_jax.config.fields import Role, roles, with_values_before
from bert_jax.config.finetuning import FinetuneConfig, Train, batch_of, finetune, resolve
from bert_jax.config.finetuning_models import adapt_to_initial
from bert_jax.errors import BadInput
from tests.support.processes import ROOT

GIVEN = {'task': {'kind': 'classification'}, 'init': 'models/mine'}
AS_IN_PRETRAINING = (
    'reduction',
    'exact_shards',
    'probe_every',
    'max_bad_steps',
    'max_rollbacks',
    'spike_threshold',
    'spike_window',
    'replica_check_every',
)


def _resolve(**train: object) -> FinetuneConfig:
    return resolve(GIVEN | {'train': train})


@pytest.mark.parametrize('name', AS_IN_PRETRAINING)
def test_loop_defaults_and_checks_equal_those_of_pretraining(name: str) -> None:
    ours, theirs = (section.__dataclass_fields__[name] for section in (Train, config.Train))
    same = {name: value for name, value in ours.metadata.items() if name != 'same_as'}
    assert (ours.default, same, ours.type) == (theirs.default, dict(theirs.metadata), theirs.type)
    assert roles(Train)[name] is Role.EXECUTION


def test_reduction_is_fast_by_default_and_exact_on_request() -> None:
    assert (_resolve().train.reduction, _resolve().train.exact_shards) == ('fast', 8)
    batch = batch_of(_resolve(reduction='exact', exact_shards=4, global_batch_size=12).train)
    assert (batch.reduction, batch.exact_shards, batch.global_batch_size) == ('exact', 4, 12)


def test_older_config_resolves_to_defaults_of_new_fields() -> None:
    values = json.loads(json.dumps(dataclasses.asdict(resolve(GIVEN))))
    del values['train']['reduction'], values['train']['exact_shards']
    assert resolve(values) == resolve(GIVEN)


def test_dropout_is_that_of_initial_model_unless_set() -> None:
    initial = config.Bert(dropout_rate=0.0, attention_dropout_rate=0.2)
    rates = [
        (model.dropout_rate, model.attention_dropout_rate)
        for given in ({}, {'dropout_rate': 0.3})
        for model in [adapt_to_initial(resolve(GIVEN | {'model': given}).model, initial)]
    ]
    assert rates == [(0.0, 0.2), (0.3, 0.2)]


@pytest.mark.parametrize('given', [None, True, False])
def test_unrolling_is_that_of_the_finetune_and_not_of_the_initial_model(given: bool | None) -> None:
    model = resolve(GIVEN | {'model': {'scan_layers': given}}).model
    assert adapt_to_initial(model, config.Bert(scan_layers=True)).scan_layers is given


def test_initial_model_determines_the_family_and_its_dropout() -> None:
    initial = config.ModernBert(num_layers=2, mlp_dropout=0.3)
    model = adapt_to_initial(resolve(GIVEN | {'model': {'dtype': 'bfloat16'}}).model, initial)
    assert (model.family, model.num_layers, model.dtype, model.mlp_dropout) == ('modernbert', 2, 'bfloat16', 0.3)
    given = {'family': 'modernbert', 'mlp_dropout': 0.1}
    model = adapt_to_initial(resolve(GIVEN | {'model': given}).model, initial)
    assert (model.mlp_dropout, model.attention_dropout) == (0.1, 0.0)


def test_dropout_of_another_family_is_refused() -> None:
    model = resolve(GIVEN | {'model': {'attention_dropout_rate': 0.2}}).model
    with pytest.raises(BadInput, match=r"attention_dropout_rate.*of the family 'modernbert'"):
        adapt_to_initial(model, config.ModernBert())
    with pytest.raises(BadInput, match='config.model.mlp_dropout'):
        resolve(GIVEN | {'model': {'mlp_dropout': 0.2}})


def _resolve_command(*overrides: str) -> FinetuneConfig:
    given = [f'--config={ROOT}/configs/finetune/glue.py:sst2', '--config.init=models/mine', *overrides]
    values, _ = parse(COMMAND, given)
    return resolve(fields_of(values.config))


@pytest.mark.parametrize(
    'family, field, value',
    [
        ('modernbert', 'classifier_pooling', 'mean'),
        ('modernbert', 'mlp_dropout', 0.2),
        ('eurobert', 'classifier_pooling', 'late'),
        ('eurobert', 'attention_dropout', 0.2),
        ('bert', 'dropout_rate', 0.2),
    ],
)
def test_command_line_can_set_the_fields_of_every_family(family: str, field: str, value: object) -> None:
    model = _resolve_command(f'--config.model.family={family}', f'--config.model.{field}={value}').model
    assert type(model) is finetuning_models.MODELS[family] and getattr(model, field) == value
    adapted = adapt_to_initial(model, config.FAMILIES[family](num_layers=2))
    assert (adapted.num_layers, getattr(adapted, field)) == (2, value)


def test_field_of_another_family_is_refused_with_the_way_to_set_it() -> None:
    with pytest.raises(BadInput, match=r'classifier_pooling: is not a field(.|\n)*fix: *--config.model.family=modernb'):
        _resolve_command('--config.model.classifier_pooling=mean')
    with pytest.raises(BadInput, match=r'norm_bias: is not a field(.|\n)*the initial model determines it'):
        _resolve_command('--config.model.norm_bias=true')
    model = _resolve_command('--config.model.family=modernbert', '--config.model.classifier_pooling=mean').model
    with pytest.raises(BadInput, match=r"classifier_pooling.*of the family 'bert'"):
        adapt_to_initial(model, config.Bert())


def test_sizes_of_another_family_from_random_weights_are_those_of_the_config() -> None:
    settings = finetune()
    settings.model.family, settings.model.num_layers = 'modernbert', 12
    settings.init, settings.tokenizer.path = 'scratch', 'vocab.txt'
    assert resolve(settings).model.num_layers == 12


def test_pooling_of_the_initial_model_applies_unless_set() -> None:
    initial = config.ModernBert(classifier_pooling='mean')
    for given, expected in ({}, 'mean'), ({'family': 'modernbert', 'classifier_pooling': 'cls'}, 'cls'):
        model = adapt_to_initial(resolve(GIVEN | {'model': given}).model, initial)
        assert isinstance(model, finetuning_models.ModernBert) and model.classifier_pooling == expected


def test_random_weights_have_the_dropout_of_pretraining() -> None:
    model = resolve(GIVEN | {'init': 'scratch', 'tokenizer': {'path': 'vocab.txt'}}).model
    assert (model.dropout_rate, model.attention_dropout_rate) == (0.1, 0.1)


def test_older_runs_keep_their_fixed_dropout_rate() -> None:
    new = resolve(GIVEN)
    recorded = dataclasses.asdict(new)
    recorded['model'] |= {'dropout_rate': 0.1, 'attention_dropout_rate': 0.1}
    kept = with_values_before(new, recorded).model
    assert (kept.dropout_rate, kept.attention_dropout_rate) == (0.1, 0.1)


@pytest.mark.parametrize(
    ('train', 'words'),
    [
        ({'reduction': 'exakt'}, "config.train.reduction: is 'exakt'"),
        ({'exact_shards': 6}, 'a power of two'),
        ({'reduction': 'exact', 'global_batch_size': 12}, 'does not divide train.global_batch_size=12'),
        ({'reduction': 'exact', 'microbatches': 2}, 'the shards are the microbatches'),
        ({'probe_every': 5}, 'config.probe.sets: is (), and train.probe_every asks for probes'),
        ({'spike_window': 7}, 'config.train.spike_window: is 7'),
        ({'max_bad_steps': 0}, 'config.train.max_bad_steps: is 0'),
    ],
)
def test_impossible_loop_settings_are_rejected_by_field(train: dict, words: str) -> None:
    with pytest.raises(BadInput) as raised:
        _resolve(**train)
    assert words in str(raised.value)


def test_only_one_axis_takes_the_remaining_devices() -> None:
    with pytest.raises(BadInput, match='config.mesh: .*\n.*at most one axis of -1'):
        resolve(GIVEN | {'mesh': {'data': -1, 'fsdp': -1}})


@pytest.mark.parametrize(
    'changes, where',
    [
        ({'train': {'global_batch_size': 1}}, 'config.train.global_batch_size: is 1'),
        ({'embedding': {'matryoshka_dims': (64, 128)}}, 'config.embedding.matryoshka_dims: is'),
        (
            {'embedding': {'matryoshka_dims': (64,), 'matryoshka_weights': (1, 1)}},
            'config.embedding.matryoshka_weights',
        ),
        ({'embedding': {'loss': 'cosent', 'num_negatives': 2}}, 'config.embedding.num_negatives: is 2'),
        ({'train': {'reduction': 'exact'}}, "config.train.reduction: is 'exact'"),
        ({'embedding': {'anchor': 'positive'}}, "the column 'positive' is named twice"),
        ({'embedding': {'temperature': 0.0}}, 'config.embedding.temperature: is 0.0'),
        ({'task': {'kind': 'embedding', 'train': (('jsonl:a', 0),)}}, 'config.task.train: is'),
        ({'task': {'train': 'corpus:data'}}, "config.task.train: is 'corpus:data'"),
        ({'task': {'train': (('tsv:a', 1.0),)}}, 'config.task.train: is'),
    ],
)
def test_wrong_embedding_config_names_the_field(changes: dict, where: str) -> None:
    given = {'task': {'kind': 'embedding'}, 'init': 'models/mine'} | changes
    with pytest.raises(BadInput) as error:
        resolve(given)
    assert where in str(error.value)


def test_weighted_training_sources_survive_json() -> None:
    task = {'kind': 'embedding', 'train': (('jsonl:pairs.jsonl', 2), ('corpus:data', 0.5))}
    resolved = resolve({'task': task, 'init': 'models/mine'})
    assert resolve(json.loads(json.dumps(dataclasses.asdict(resolved)))) == resolved


def test_matryoshka_dimension_above_the_hidden_size_suggests_ones_that_fit() -> None:
    check_dims((64, 32), 64)
    with pytest.raises(BadInput, match=r'matryoshka_dims=\(64,32\)'):
        check_dims((128, 96, 32), 64)
