"""The shipped configs of published sizes have the published architecture and recipe."""

import pytest

from bert_jax import config
from bert_jax.cli.config_file import load_config_file
from bert_jax.config.families import FULL
from bert_jax.errors import BadInput
from bert_jax.model.family import num_parameters

PUBLISHED_VOCAB = 50_368
# (layers, hidden size, intermediate size, heads, millions of parameters, peak learning rate)
PUBLISHED = {
    'modernbert.py:base': (22, 768, 1152, 12, 149, 8e-4),
    'modernbert.py:large': (28, 1024, 2624, 16, 395, 5e-4),
    'ettin.py:17m': (7, 256, 384, 4, 17, 3e-3),
    'ettin.py:32m': (10, 384, 576, 6, 32, 3e-3),
    'ettin.py:68m': (19, 512, 768, 8, 68, 3e-3),
    'ettin.py:150m': (22, 768, 1152, 12, 150, 8e-4),
    'ettin.py:400m': (28, 1024, 2624, 16, 400, 5e-4),
    'ettin.py:1b': (28, 1792, 3840, 28, 1000, 5e-4),
}


def _resolve(name: str) -> config.Config:
    return config.resolve(load_config_file(name))


@pytest.mark.parametrize('name', PUBLISHED)
def test_named_size_has_the_published_architecture_and_recipe(name: str) -> None:
    *sizes, millions, peak_learning_rate = PUBLISHED[name]
    found = _resolve(name)
    model = found.model
    assert isinstance(model, config.ModernBert)
    assert [model.num_layers, model.hidden_size, model.intermediate_size, model.num_heads] == sizes
    assert num_parameters(model, PUBLISHED_VOCAB) == pytest.approx(millions * 1e6, rel=0.035)
    assert found.optimizer.peak_learning_rate == peak_learning_rate
    assert found.data.pairing == 'none' and found.data.packing and found.data.masking.rate == 0.3
    assert (found.tokenizer.kind, found.tokenizer.vocab_size) == ('bpe', PUBLISHED_VOCAB)


@pytest.mark.parametrize('name', ['modernbert.py:base', 'modernbert.py:large', 'ettin.py:17m', 'ettin.py:68m'])
def test_named_size_has_as_many_parameters_as_the_reference(name: str) -> None:
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    num_layers, hidden_size, intermediate_size, num_heads, *_ = PUBLISHED[name]
    settings = transformers.ModernBertConfig(
        num_hidden_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=num_heads,
    )
    with torch.device('meta'):
        reference = transformers.ModernBertForMaskedLM(settings)
    model = _resolve(name).model
    assert num_parameters(model, settings.vocab_size) == sum(each.numel() for each in reference.parameters())
    assert model.local_attention == settings.local_attention
    assert list(model.kinds) == settings.layer_types
    assert model.global_rope_theta == settings.rope_parameters[FULL]['rope_theta']


def test_nano_fits_into_minutes_on_two_cores() -> None:
    found = _resolve('modernbert.py:nano')
    assert num_parameters(found.model, found.tokenizer.vocab_size) < 2e6
    assert found.train.steps * found.train.global_batch_size * found.data.sequence_length < 20e6
    assert found.model.local_attention < found.data.sequence_length  # local layers see less than a row


def test_unknown_size_lists_the_published_ones() -> None:
    with pytest.raises(BadInput, match='17m, 32m, 68m'):
        _resolve('ettin.py:17')
