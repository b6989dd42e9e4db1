"""Exports open in sentence-transformers, which computes the vectors that `embed` computes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import MODES, SentenceSettings, read_settings, write_settings
from bert_jax.pretrained.vectors import TextEncoder
from bert_jax.text.tokenizer import load_tokenizer
from tests.support.models import MODEL, TOKENS, write_model

D = 32  # hidden size
SIZES = {
    'num_layers': 2,
    'hidden_size': D,
    'num_heads': 2,
    'intermediate_size': 48,
    'max_positions': 40,
    'dtype': 'float32',
}
MODELS = {
    'bert': MODEL,
    'modernbert': config.ModernBert(**SIZES, local_attention=8),
    'eurobert': config.EuroBert(**SIZES, num_key_value_heads=1),
}
SETTINGS = {
    'mean': SentenceSettings('', max_length=24),
    'normalized': SentenceSettings(
        '',
        max_length=20,
        modes=('cls',),
        normalize=True,
        prompts={'query': 'who is ', 'document': ''},
        matryoshka_dims=(8, 16),
    ),
    'everything': SentenceSettings(
        '',
        max_length=9,
        lowercase=True,
        prompt='town: ',
        modes=('lasttoken', 'mean'),
        normalize=True,
        prompts={'ü': 'town: '},
        similarity='dot',
        truncate_dim=40,
    ),
    'all modes': SentenceSettings('', max_length=12, modes=(*MODES,), include_prompt=False),
}


def write_export(directory: Path, family: str, settings: SentenceSettings) -> str:
    """Writes a random model with its tokenizer and the files of sentence-transformers."""
    write_model(directory, MODELS[family])
    tokenizer = load_tokenizer(directory / 'vocab.txt', lowercase=True, strip_accents=False)
    tokenizer.save(directory, settings.max_length or 0, family == 'bert')
    write_settings(directory, settings, D)
    return str(directory)


def texts_of_many_lengths(count: int) -> list[str]:
    rng, words = np.random.default_rng(0), [token for token in TOKENS[5:] if not token.startswith('##')]
    return ['', *(' '.join(rng.choice(words, rng.integers(1, 40))) for _ in range(count - 1))]


@pytest.mark.parametrize('name', SETTINGS)
def test_settings_that_were_written_are_read(name: str, tmp_path: Path) -> None:
    write_settings(tmp_path, SETTINGS[name], D)
    assert read_settings(str(tmp_path)) == dataclasses.replace(SETTINGS[name], directory=str(tmp_path))


def test_old_versions_know_every_key(tmp_path: Path) -> None:
    write_settings(tmp_path, SETTINGS['normalized'], D)
    modules = json.loads((tmp_path / 'modules.json').read_text())
    assert [each['type'].removeprefix('sentence_transformers.models.') for each in modules] == [
        'Transformer',
        'Pooling',
        'Normalize',
    ]
    pooling = json.loads((tmp_path / '1_Pooling' / 'config.json').read_text())
    assert pooling == {  # the arguments of Pooling in version 2.0
        'word_embedding_dimension': D,
        'pooling_mode_cls_token': True,
        'pooling_mode_max_tokens': False,
        'pooling_mode_mean_tokens': False,
        'pooling_mode_mean_sqrt_len_tokens': False,
    }
    transformer = json.loads((tmp_path / 'sentence_bert_config.json').read_text())
    assert transformer == {'max_seq_length': 20, 'do_lower_case': False}


@pytest.mark.compiles
@pytest.mark.parametrize(
    'family, name', [('bert', 'everything'), ('bert', 'normalized'), ('modernbert', 'normalized'), ('eurobert', 'mean')]
)
def test_sentence_transformers_computes_the_same_vectors(family: str, name: str, tmp_path: Path) -> None:
    reference = pytest.importorskip('sentence_transformers')
    directory = write_export(tmp_path / 'model', family, SETTINGS[name])
    theirs = reference.SentenceTransformer(directory, device='cpu')
    settings, ours = read_settings(directory), load_pretrained(directory)
    texts = texts_of_many_lengths(200)
    expected = theirs.encode(texts)
    found, num_truncated = TextEncoder(ours, settings).encode(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert num_truncated > 0
    for dims in (8, 16, 31):
        expected = theirs.encode(texts, truncate_dim=dims, normalize_embeddings=settings.normalize)
        found, _ = TextEncoder(ours, settings, dims).encode(texts)
        assert found.shape == (200, dims)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert theirs.similarity_fn_name == settings.similarity
    assert theirs.prompts.items() >= settings.prompts.items()
