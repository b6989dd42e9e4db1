"""The model card describes the family of the model: name, origin, tags, facts, classes and citation."""

import re
from typing import Any

import pytest

from bert_jax import config
from bert_jax.pretrained.card import model_card, sentence_vectors
from bert_jax.pretrained.convert import import_model
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.workdir import identity
from tests.support.models import write_model

SIZES = {'num_layers': 4, 'hidden_size': 32, 'num_heads': 4, 'intermediate_size': 48, 'max_positions': 32}
MODELS = {
    'BERT': config.Bert(**SIZES),
    'ModernBERT': config.ModernBert(**SIZES, local_attention=16, local_rope_theta=5e3),
    'EuroBERT': config.EuroBert(**SIZES, num_key_value_heads=2),
}
PAPERS = {'BERT': 'devlin-etal-2019-bert', 'ModernBERT': '2412.13663', 'EuroBERT': '2503.05500'}
FACTS = {
    'BERT': ['| Layers | 4 |', '| Attention heads | 4 |'],
    'ModernBERT': [
        '| Layers with full attention | 2 of 4: 0, 3 |',
        '| Local attention window | 16 tokens, 8 to either side |',
        '| Base of rotary wavelengths, full attention | 160,000 |',
        '| Base of rotary wavelengths, local attention | 5,000 |',
    ],
    'EuroBERT': [
        '| Key and value heads | 2 |',
        '| Base of rotary wavelengths | 250,000 |',
        '| Decoder | not tied to the word embeddings |',
    ],
}

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]


@pytest.fixture(scope='module')
def cards(tmp_path_factory: pytest.TempPathFactory, one_device: None) -> dict[str, str]:
    """The card of an imported model of each family, without card settings."""
    directory, texts = tmp_path_factory.mktemp('cards'), {}
    for name, model in MODELS.items():
        write_model(directory / name, model)
        workdir = directory / name / 'workdir'
        import_model(str(directory / name), str(workdir))
        trained, resolved = load_pretrained(str(workdir)), identity.load_config(str(workdir))
        texts[name] = model_card(
            str(workdir), resolved, config.Card(), trained, SentenceSettings('', trained.max_length)
        )
    return texts


@pytest.mark.parametrize('name', MODELS)
def test_title_origin_and_facts_name_the_family(name: str, cards: dict[str, str]) -> None:
    card = cards[name]
    assert re.search(rf'^# {name} encoder, [\d.]+M parameters$', card, re.MULTILINE)
    assert f'A {name} encoder that was trained elsewhere' in card
    assert f'| Architecture | {name} |' in card
    for fact in FACTS[name]:
        assert f'\n{fact}\n' in card
    others = {fact for other in MODELS if other != name for fact in FACTS[other]} - {*FACTS[name], *FACTS['BERT']}
    assert not any(fact in card for fact in others)


@pytest.mark.parametrize('name', MODELS)
def test_intended_use_names_only_tasks_that_the_family_has(name: str, cards: dict[str, str]) -> None:
    assert ('question answering' in cards[name]) == (name != 'EuroBERT')


@pytest.mark.parametrize('name', MODELS)
def test_card_cites_the_paper_of_its_family_alone(name: str, cards: dict[str, str]) -> None:
    assert f'the paper that introduced {name}:' in cards[name]
    assert [paper for paper, key in PAPERS.items() if key in cards[name]] == [name]
    [block] = re.findall(r'```bibtex\n(.*?)```', cards[name], re.DOTALL)
    assert block.count('{') == block.count('}') and block.count('\n@') == 1 and block.startswith('@software')


@pytest.mark.parametrize('name', MODELS)
def test_front_matter_tags_the_family_and_is_valid(name: str, cards: dict[str, str]) -> None:
    yaml, hub = pytest.importorskip('yaml'), pytest.importorskip('huggingface_hub')
    front: dict[str, Any] = yaml.safe_load(cards[name].split('---\n')[1])
    assert front == {
        'library_name': 'transformers',
        'pipeline_tag': 'fill-mask',
        'mask_token': '[MASK]',
        'tags': [name.lower(), 'sentence-transformers'],
    }
    assert hub.ModelCard(cards[name]).data.tags == [name.lower(), 'sentence-transformers']


@pytest.mark.parametrize('name', MODELS)
def test_card_lists_exactly_the_classes_that_the_family_has(name: str, cards: dict[str, str]) -> None:
    transformers = pytest.importorskip('transformers')
    [line] = re.findall(r'Loads with (.*?)\. Before', cards[name])
    listed = {each.strip('`') for each in line.split(', ')} - {'AutoTokenizer'}
    candidates = ('AutoModel', 'AutoModelForMaskedLM', 'AutoModelForNextSentencePrediction', 'AutoModelForPreTraining')
    kind = type(transformers.AutoConfig.for_model(name.lower()))
    assert listed == {each for each in candidates if kind in getattr(transformers, each)._model_mapping}


def test_card_says_how_a_text_becomes_a_vector() -> None:
    settings = SentenceSettings(
        '',
        max_length=1024,
        modes=('cls', 'mean'),
        normalize=True,
        prompts={'query': 'query: '},
        similarity='dot',
        matryoshka_dims=(64, 128),
    )
    section = sentence_vectors(settings, 256)
    for row in (
        'Dims | 512',
        'Pooling | cls and mean',
        'Normalized | yes',
        'Similarity | dot',
        'Truncated to | 1,024 tokens',
        'Matryoshka dims | 64, 128',
        'Prompt \'query\' | "query: "',
    ):
        assert f'\n| {row} |' in section
    assert 'Matryoshka' not in sentence_vectors(SentenceSettings('', 16), 256)
