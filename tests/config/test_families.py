"""`model.family` selects the fields of a model; fields of other families are rejected by name."""

import pytest

from bert_jax import config
from bert_jax.__main__ import main
from bert_jax.errors import BadInput


def _resolve(**model: object) -> config.Config:
    return config.resolve({'model': model, 'data': {'pairing': 'none'}})


def test_family_selects_its_section_and_bert_is_the_default() -> None:
    assert isinstance(_resolve().model, config.Bert)
    assert isinstance(_resolve(family='modernbert').model, config.ModernBert)
    assert _resolve(family='eurobert', num_key_value_heads=4).model.num_key_value_heads == 4


@pytest.mark.parametrize(
    'model, expected',
    [
        (
            {'family': 'modernbert', 'dropout_rate': 0.1},
            "config.model.dropout_rate: is not a field of family 'modernbert'",
        ),
        ({'family': 'modernbrt'}, "did you mean 'modernbert'"),
        ({'family': 'modernbert', 'layer_types': ('full_attention',)}, 'one for each of the 22 layers'),
        (
            {'family': 'modernbert', 'layer_types': ('global',) * 22},
            "a tuple of 'full_attention' and 'sliding_attention'",
        ),
        ({'family': 'modernbert', 'num_heads': 7}, 'which does not divide hidden_size=768'),
        (
            {'family': 'eurobert', 'local_attention': 64},
            "config.model.local_attention: is not a field of family 'eurobert'",
        ),
        ({'family': 'eurobert', 'num_key_value_heads': 5}, 'which does not divide num_heads=12'),
        ({'family': 'modernbert', 'hidden_size': 36}, 'heads of an even size'),
    ],
)
def test_field_of_another_family_is_named(model: dict[str, object], expected: str) -> None:
    with pytest.raises(BadInput) as raised:
        _resolve(**model)
    assert expected in str(raised.value)


def test_family_without_pair_head_rejects_pairs() -> None:
    with pytest.raises(BadInput, match='modernbert has no head for pairs'):
        config.resolve({'model': {'family': 'modernbert'}})


def test_defaults_of_a_family_resolve_and_an_unknown_one_is_named() -> None:
    for family, section in config.FAMILIES.items():
        assert config.resolve(config.defaults(family)).model == section()
    with pytest.raises(BadInput, match="did you mean 'eurobert'"):
        config.defaults('eurobrt')


def test_override_of_another_family_names_the_family_that_has_the_field(capsys) -> None:
    for config_file, field, words in (
        ('bert.py:tiny', 'mlp_dropout=0.1', "not a field of family 'bert', but of modernbert"),
        ('modernbert.py:nano', 'dropout_rate=0.1', "not a field of family 'modernbert', but of bert"),
        ('modernbert.py:nano', 'local_atention=9', 'did you mean config.model.local_attention?'),
        ('bert.py:tiny', 'family=modernbert', "bert_jax.config.defaults('modernbert')"),
    ):
        assert main(['bert_jax', 'train', f'--config={config_file}', f'--config.model.{field}', '--workdir=run']) == 2
        assert words in capsys.readouterr().err
