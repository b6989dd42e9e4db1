"""The shipped configs of published sizes have the published architecture and recipe."""

import pytest

from bert_jax import config
from bert_jax.cli.config_file import load_config_file
from bert_jax.config.families import FULL
from bert_jax.errors import BadInput
from bert_jax.model.family import num_parameters
from bert_jax.train.optimizer import make_schedule

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
    assert found.model.max_positions >= max(phase.data.sequence_length for phase in found.in_phases)
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
    model = _resolve(name).in_phases[-1].model
    assert num_parameters(model, settings.vocab_size) == sum(each.numel() for each in reference.parameters())
    assert model.local_attention == settings.local_attention
    assert list(model.kinds) == settings.layer_types
    assert model.global_rope_theta == settings.rope_parameters[FULL]['rope_theta']


# Per phase: (billions of tokens, positions of a row, share of masks, first and last learning rate, what weight decay
# takes off a weight per step at the peak, RoPE theta of global and local layers)
RECIPES = {
    'modernbert.py:base': [
        (1719, 1024, 0.3, 8e-4, 8e-4, 1e-5, 1e4, 1e4),
        (250, 8192, 0.3, 3e-4, 3e-4, 1e-5, 1.6e5, 1e4),
        (50, 8192, 0.3, 3e-4, 3e-7, 1e-5, 1.6e5, 1e4),
    ],
    'modernbert.py:large': [
        (900, 1024, 0.3, 5e-4, 5e-4, 1e-5, 1e4, 1e4),
        (819, 1024, 0.3, 5e-5, 5e-5, 1e-6, 1e4, 1e4),
        (250, 8192, 0.3, 5e-5, 5e-5, 1e-6, 1.6e5, 1e4),
        (50, 8192, 0.3, 5e-5, 5e-8, 1e-6, 1.6e5, 1e4),
    ],
    'ettin.py:17m': [
        (1700, 1024, 0.3, 3e-3, 3e-3, 3e-4, 1e4, 1e4),
        (250, 7999, 0.3, 3e-3, 1.5e-3, 3e-4, 1.6e5, 1e4),
        (50, 7999, 0.15, 1.5e-3, 6e-5, 3e-4, 1.6e5, 1.6e5),
    ],
    'ettin.py:1b': [
        (1700, 1024, 0.3, 5e-4, 5e-4, 5e-5, 1e4, 1e4),
        (83.333, 7999, 0.3, 5e-4, 2.5e-4, 5e-5, 1.6e5, 1.6e5),
        (16.667, 7999, 0.15, 2.5e-4, 1e-5, 5e-5, 1.6e5, 1.6e5),
    ],
    'mmbert.py:base': [
        (2300, 1024, 0.3, 8e-4, 8e-4, 8e-5, 1e4, 1e4),
        (600, 8192, 0.15, 8e-4, 8e-4, 8e-5, 1.6e5, 1.6e5),
        (100, 8192, 0.05, 8e-4, 1.6e-5, 8e-5, 1.6e5, 1.6e5),
    ],
    'mmbert.py:small': [
        (2300, 1024, 0.3, 8e-4, 8e-4, 8e-5, 1e4, 1e4),
        (600, 8192, 0.15, 4e-4, 4e-4, 4e-5, 1.6e5, 1.6e5),
        (100, 8192, 0.05, 4e-4, 1.6e-5, 4e-5, 1.6e5, 1.6e5),
    ],
    'neobert.py': [
        (900_000 * 2048 * 1024e-9, 1024, 0.2, 6e-4, 6e-5, 6e-5, 1e4, None),
        (100_000 * 2048 * 1024e-9, 1024, 0.2, 6e-5, 6e-5, 6e-6, 1e4, None),
        (50_000 * 512 * 4096e-9, 4096, 0.2, 6e-5, 6e-5, 6e-6, 1e4, None),
    ],
}


@pytest.mark.parametrize('name', RECIPES)
def test_phases_are_those_of_the_published_recipe(name: str) -> None:
    found, ends = _resolve(name), 0
    schedule = make_schedule(found.optimizer, found.train.steps, found.phases)
    for phase, published in zip(found.in_phases, RECIPES[name], strict=True):
        billions, length, rate, first, last, decayed, theta, local_theta = published
        train, optimizer, model = phase.train, phase.optimizer, phase.model
        assert phase.data.sequence_length == length
        surplus = config.num_rows(train) * length - billions * 1e9  # what the last batch has too much
        assert -1 < surplus < train.global_batch_size * length
        assert phase.data.masking.rate == rate
        peak = float(schedule(ends + optimizer.warmup_steps))
        ends += train.steps
        assert (peak, float(schedule(ends - 1))) == pytest.approx((first, last), rel=0.02, abs=1e-7)
        assert optimizer.weight_decay * peak == pytest.approx(decayed, rel=1e-5)
        own = model.rope_theta if isinstance(model, config.EuroBert) else model.global_rope_theta
        assert (own, getattr(model, 'local_rope_theta', None)) == (theta, local_theta)


@pytest.mark.parametrize(('name', 'millions'), [('mmbert.py:small', 140), ('mmbert.py:base', 307), ('neobert.py', 250)])
def test_recipe_has_as_many_parameters_as_published(name: str, millions: int) -> None:
    found = _resolve(name)
    assert num_parameters(found.model, found.tokenizer.vocab_size) == pytest.approx(millions * 1e6, rel=0.03)


def test_nano_fits_into_minutes_on_two_cores() -> None:
    found = _resolve('modernbert.py:nano')
    assert num_parameters(found.model, found.tokenizer.vocab_size) < 2e6
    assert found.train.steps * found.train.global_batch_size * found.data.sequence_length < 20e6
    assert found.model.local_attention < found.data.sequence_length  # local layers see less than a row


def test_unknown_size_lists_the_published_ones() -> None:
    with pytest.raises(BadInput, match='17m, 32m, 68m'):
        _resolve('ettin.py:17')


@pytest.mark.parametrize('name, first, billions', [('modernbert.py:base', 768, 50), ('modernbert.py:large', 448, 10)])
def test_batch_grows_over_the_published_tokens(name: str, first: int, billions: int) -> None:
    phase, *others = _resolve(name).in_phases
    sizes = config.batch_sizes(phase.train)
    assert sizes.at(0) == first and sizes.at(phase.train.batch_warmup_steps) == phase.train.global_batch_size
    tokens = sizes.before(phase.train.batch_warmup_steps) * phase.data.sequence_length
    assert tokens == pytest.approx(billions * 1e9, rel=1e-3)
    assert all(config.batch_sizes(other.train).is_constant for other in others)
