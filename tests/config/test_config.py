"""A wrong config is reported immediately, with the name of the field and what would work."""

import dataclasses
import json
import runpy
import shlex
from pathlib import Path
from typing import ClassVar

import pytest

from bert_jax import config
from bert_jax.config import Config, Data, Masking, bert, field_names, finetuning, resolve, sources
from bert_jax.config.fields import (
    Role,
    identity_of,
    roles,
    section_of,
    setting,
    with_values_before,
    without_places_to_write,
)
from bert_jax.errors import BadInput


def _message(**fields: object) -> str:
    changed = bert('tiny').copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
    with pytest.raises(BadInput) as raised:
        resolve(changed)
    return str(raised.value)


def test_every_published_size_resolves() -> None:
    for size in config.SIZES:
        resolved = resolve(bert(size))
        assert resolved.model.hidden_size == config.SIZES[size][1]


def test_defaults_are_those_of_the_original_base() -> None:
    assert resolve(bert('base')) == Config()


def test_config_survives_json() -> None:
    import json

    resolved = resolve(bert('mini'))
    assert resolve(json.loads(json.dumps(dataclasses.asdict(resolved)))) == resolved


@pytest.mark.parametrize(
    'typo, meant',
    [('train__stepz', 'train.steps'), ('model__num_layer', 'model.num_layers'), ('optimiser', 'optimizer')],
)
def test_misspelled_field_suggests_the_nearest_name(typo: str, meant: str) -> None:
    message = _message(**{typo: 1})
    assert 'no such field' in message and f'config.{meant}' in message


def test_invalid_choice_lists_allowed_and_nearest_values() -> None:
    message = _message(data__pairing='npr')
    assert "'nsp', 'sop', 'none'" in message and "did you mean 'nsp'" in message


@pytest.mark.parametrize(
    ('values', 'where'),
    [
        ({'template': '{title'}, 'template: is '),
        ({'template': 'no field'}, 'template: is '),
        ({'template': '{title!r}'}, 'template: is '),
        (
            {'template': '{title}', 'text_field': 'body', 'source': 'csv:a'},
            'template: is set, and so is data.text_field',
        ),
        ({'template': '{title}', 'source': 'text:a'}, 'template: is set, and no source has fields'),
        ({'columns': ('a', 'a'), 'source': 'csv:a'}, 'columns: is '),
        ({'columns': ('id', 'body'), 'source': 'csv:a'}, "columns: is .* without 'text'"),
        ({'columns': ('id', 'text'), 'source': 'jsonl:a'}, 'columns: is set, and no source'),
        ({'delimiter': ',,', 'source': 'csv:a'}, 'delimiter: is '),
        ({'group_field': 'id', 'source': 'html:a'}, "group_field: is 'id', but text files have no fields"),
    ],
)
def test_fields_that_say_how_tables_are_read_are_checked(values: dict, where: str) -> None:
    with pytest.raises(BadInput, match=f'config.data.{where}'):
        resolve({'data': values})


@pytest.mark.parametrize('field', ['source', 'validation_source'])
@pytest.mark.parametrize(
    ('source', 'fix'),
    [
        ('d1.txt', 'text:d1.txt'),
        ('my texts/a', "'--config.data.{field}=text:my texts/a'"),
        ('wiki/*.jsonl.gz', 'jsonl:wiki/*.jsonl.gz'),
        ('a.parquet', 'parquet:a.parquet'),
        ('tables/*.csv.xz', 'csv:tables/*.csv.xz'),
        ('gs://bucket/a.txt', 'text:gs://bucket/a.txt'),
        ('txt:a.md', 'text:a.md'),
        ('json:a', 'jsonl:a'),
    ],
)
def test_source_without_known_kind_suggests_a_valid_one(field: str, source: str, fix: str) -> None:
    suggested = _message(**{f'data__{field}': source}).partition('fix:')[2]
    assert fix.format(field=field) in suggested and f'--config.data.{field}=' in suggested
    flag = shlex.split(suggested)[0]
    resolve({'data': {field: flag.partition('=')[2]}})


@pytest.mark.parametrize('source', ['wikipedia', 'text:', 'other:a.txt'])
def test_source_that_resembles_nothing_gets_no_suggestion(source: str) -> None:
    assert 'fix:' not in _message(data__source=source)


@pytest.mark.parametrize('name', sorted(field_names()))
def test_every_field_rejects_values_of_another_type(name: str) -> None:
    values = dataclasses.asdict(Config())
    section = values
    *sections, leaf = name.split('.')
    for part in sections:
        section = section[part]
    section[leaf] = ['not', 'a', 'value']
    with pytest.raises(BadInput, match=f'config.{name}'):
        resolve(values)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -0.1])
def test_nan_and_infinity_are_rejected(value: float) -> None:
    assert 'optimizer.peak_learning_rate' in _message(optimizer__peak_learning_rate=value)


@pytest.mark.parametrize(
    'fields, words',
    [
        ({'model__num_heads': 3}, 'divisor of 128'),
        ({'data__sequence_length': 1024}, 'max_positions=512'),
        ({'train__global_batch_size': 10, 'train__microbatches': 4}, 'global_batch_size=12'),
        ({'optimizer__warmup_steps': 11, 'train__steps': 10}, 'at most train.steps=10'),
        ({'mesh__fsdp': -1}, 'at most one axis'),
        ({'data__masking__mask_fraction': 0.95}, 'at most 1'),
        ({'data__source': 'txt:a'}, 'python-docs'),
        ({'data__bucket_lengths': (32, 16)}, 'ascending'),
        ({'data__bucket_lengths': (32, 128)}, 'below data.sequence_length=128, which is the longest already'),
        ({'data__bucket_lengths': (32,), 'data__packing': True}, '() with packing'),
    ],
)
def test_conflicting_fields_are_rejected_with_what_works(fields: dict, words: str) -> None:
    assert words in _message(**fields)


def test_phases_inherit_omitted_fields_and_sum_their_steps() -> None:
    values = dataclasses.asdict(Config()) | {'phases': [{'steps': 20_000}, {'steps': 10_000, 'sequence_length': 512}]}
    values['data'] = values['data'] | {'sequence_length': 64}
    resolved = resolve(values)
    assert resolved.train.steps == 30_000
    assert [(p.sequence_length, p.global_batch_size, p.warmup_steps) for p in resolved.phases] == [
        (64, 256, 10_000),
        (512, 256, 10_000),
    ]
    assert resolve(dataclasses.asdict(resolved)) == resolved
    lengths = [config.num_predictions(phase.data) for phase in resolved.in_phases]
    assert lengths == [round(0.15 * 64), round(0.15 * 512)]
    assert [config.phase_at(resolved, step) for step in (1, 20_000, 20_001, 30_000)] == [0, 0, 1, 1]


def test_two_phase_config_spends_90_percent_on_short_rows() -> None:
    path = Path(config.__file__).parents[2] / 'configs' / 'bert_two_phase.py'
    resolved = resolve(runpy.run_path(str(path))['get_config']('large'))
    assert [phase.sequence_length for phase in resolved.phases] == [128, 512]
    assert resolved.phases[0].steps == 0.9 * resolved.train.steps


@pytest.mark.parametrize(
    'phase, words',
    [
        ({'steps': 10, 'sequence_length': 1024, 'warmup_steps': 0}, 'config.phases[1].sequence_length: is 1024'),
        ({'steps': 10, 'warmup_steps': 11}, 'at most phases[1].steps=10'),
        ({'steps': 10, 'warmup_steps': 0, 'global_batch_size': 0}, 'config.phases[1].global_batch_size: is 0'),
        ({'steps': 'ten'}, 'config.phases[1].steps'),
        ({'steps': 10, 'warmup': 1}, 'did you mean config.phases[1].warmup_steps?'),
        ({'sequence_length': 64}, 'config.phases[1]: does not say how many steps'),
        (7, 'config.phases[1]: is 7'),
    ],
)
def test_invalid_phase_is_named_by_its_index(phase: object, words: str) -> None:
    assert words in _message(phases=({'steps': 20_000}, phase))


def test_unknown_size_suggests_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'large'"):
        bert('larg')


def test_weighted_sources_survive_json():
    several = (('text:a', 2), ('jsonl:b', 0.5))
    chosen = bert('tiny')
    chosen.data.source = several
    resolved = resolve(chosen)
    assert sources(resolved.data) == several and sources(resolve({}).data) == (('python-docs', 1.0),)
    assert resolve(json.loads(json.dumps(dataclasses.asdict(resolved)))) == resolved
    for bad in (5, (), ('text:a',), (('text:a', 0),), (('text:a', 1), ('text:a', 1)), (('tekst:a', 1),)):
        with pytest.raises(BadInput, match='config.data.source: is .*\n.*expected'):
            resolve({'data': {'source': bad}})


@pytest.mark.parametrize('whole', [config.Config, finetuning.FinetuneConfig])
def test_every_field_of_a_run_has_a_role(whole: type) -> None:
    sections = [field.type for field in dataclasses.fields(whole) if dataclasses.is_dataclass(field.type)]
    for section in (whole, *sections, config.Phase):
        assert {*roles(section)} == {field.name for field in dataclasses.fields(section)}
        assert {*map(type, roles(section).values())} == {Role}


def test_only_identity_fields_are_part_of_the_identity() -> None:
    run = Config(train=config.Train(steps=7, skip=((0, 1, 2),), log_every=3), init='x')
    changed = {name: value for name, value in identity_of(run).items() if identity_of(Config()).get(name) != value}
    assert changed == {'train.steps': 7, 'train.skip': [[0, 1, 2]]}  # IDENTITY, IDENTITY_IF_SET; not EXECUTION, CONTENT
    assert identity_of(run)['data.masking']['rate'] == 0.15
    assert not {'data.source', 'mesh.data', 'train.skip'} & identity_of(Config()).keys()


@dataclasses.dataclass(frozen=True)
class _Inner:
    ROLE: ClassVar[Role] = Role.IDENTITY

    newer: bool = setting(True, role=Role.IDENTITY_IF_SET, before=False)
    older: int = 3


@dataclasses.dataclass(frozen=True)
class _Outer:
    ROLE: ClassVar[Role] = Role.IDENTITY

    raised: int = setting(0, before=-1)  # a field whose default has changed since the run began
    inner: _Inner = _Inner()


@pytest.mark.parametrize(
    'ours, recorded, expected',
    [
        (_Outer(), {'raised': -1, 'inner': {'older': 3}}, _Outer(-1, _Inner(newer=False))),  # as the run began
        (_Outer(), {'raised': 0, 'inner': {'newer': True, 'older': 3}}, _Outer()),  # a run of today
        (
            _Outer(5),
            {'raised': -1, 'inner': {}},
            _Outer(5, _Inner(newer=False)),
        ),  # set explicitly: reported as different
        (_Outer(), {'raised': 4, 'inner': {'newer': True}}, _Outer()),  # set explicitly in the run: different
    ],
)
def test_run_keeps_the_defaults_it_began_with(ours: _Outer, recorded: dict, expected: _Outer) -> None:
    assert with_values_before(ours, recorded) == expected


def test_newer_default_applies_if_the_change_is_allowed() -> None:
    recorded = {'raised': -1, 'inner': {'older': 3}}
    assert with_values_before(_Outer(), recorded, ['inner', 'raised']) == _Outer()
    assert with_values_before(_Outer(), recorded, ['inner.newer']) == _Outer(-1)


def test_new_field_does_not_change_identities_of_older_runs() -> None:
    assert identity_of(_Outer(inner=_Inner(newer=False))) == {'raised': 0, 'inner.older': 3}
    assert identity_of(_Outer()) == {'raised': 0, 'inner.older': 3, 'inner.newer': True}
    old, new = Masking(exclude_special=False), Masking()
    masking = identity_of(Config(data=Data(masking=old)))['data.masking']
    assert masking.keys() == {'rate', 'mask_fraction', 'random_fraction', 'unit'}
    assert identity_of(Config(data=Data(masking=new)))['data.masking']['exclude_special']


def test_phases_are_resolved_once() -> None:
    phases = [{'steps': steps, 'warmup_steps': 0} for steps in (3, 4)]
    run = config.resolve(config.bert('tiny').to_dict() | {'phases': phases})
    assert run.in_phases is run.in_phases
    assert [phase.train.steps for phase in run.in_phases] == [3, 4]


# Fields that may name a file, a directory or a dataset that is only read. A new field that a command writes to, or
# starts as a program, is marked `is_written` instead.
_ONLY_READ = {
    'data.source',
    'data.corpus',  # plans are kept in a corpus, which has to be one already
    'data.validation_source',
    'tokenizer.path',
    'tokenizer.add_tokens',
    'init',
    'probe.sets',
    'task.directory',
    'task.train',
    'task.validation',
    'task.predict',
}
_NAMES_NO_PLACE = {
    'data.text_field',
    'data.group_field',
    'data.template',
    'data.columns',
    'data.delimiter',
    'data.encoding',
    'data.languages',
    'data.quality_rules',
    'data.redact',
    'data.bucket_lengths',
    'train.stop_at',
    'train.skip',
    'train.examples',
    'probe.text',
    'probe.label',
    'card.name',
    'card.description',
    'card.training_data',
    'card.license',
    'card.language',
    'card.datasets',
    'task.text',
    'task.text_pair',
    'task.label',
    'task.columns',
    'task.labels',
    'task.metrics',
    'task.token_prefix',
    'data.source_weights',
    'phases',
    'embedding.matryoshka_dims',
    'embedding.matryoshka_weights',
    'embedding.query_prompt',
    'embedding.passage_prompt',
    'embedding.anchor',
    'embedding.positive',
    'embedding.negatives',
    'embedding.score',
}


@pytest.mark.parametrize('whole', [Config, finetuning.FinetuneConfig])
def test_every_path_field_declares_whether_it_is_an_output(whole: type) -> None:
    unclear, marked = set(), set()

    def look(section: type, prefix: str) -> None:
        for field in dataclasses.fields(section):
            if (inner := section_of(field)) is not None:
                look(inner, f'{prefix}{field.name}.')
            elif field.metadata.get('is_written'):
                marked.add(prefix + field.name)
            elif isinstance(field.default, str | tuple) and not field.metadata.get('choices'):
                unclear.add(prefix + field.name)

    look(whole, '')
    assert unclear <= _ONLY_READ | _NAMES_NO_PLACE
    assert marked == ({'data.local_copy'} if whole is Config else set())


def test_output_paths_are_left_out_at_any_depth() -> None:
    values = {'data': {'local_copy': '/home/you', 'corpus': 'c', 'unknown': 1}, 'tokenizer': 'no section'}
    kept, left_out = without_places_to_write(Config, values)
    assert kept == {'data': {'corpus': 'c', 'unknown': 1}, 'tokenizer': 'no section'}
    assert left_out == {'data.local_copy': '/home/you'} and values['data']['local_copy'] == '/home/you'
    assert without_places_to_write(Config, {'data': {'local_copy': ''}}) == ({'data': {}}, {})
