"""The documentation agrees with the code: messages exist, every field is explained, questions find their page."""

import importlib.util
import json
import pathlib
import re
import sys
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip('mkdocs')
pytest.importorskip('lunr')

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location('hooks', ROOT / 'docs' / 'hooks.py')
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules['hooks'] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp('site')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('NO_MKDOCS_2_WARNING', '1')
        patch.chdir(ROOT)
        build(load_config('mkdocs.yml', strict=True, site_dir=str(directory)))
    return directory


def _sources() -> str:
    paths = [*(ROOT / 'bert_jax').rglob('*.py'), ROOT / 'Makefile', ROOT / 'pyproject.toml']
    text = '\n'.join(path.read_text('utf-8') for path in paths)
    return re.sub(r"['\"]\s*\n\s*f?['\"]", '', text)  # strings that are continued on the next line


def test_headings_of_troubleshooting_are_messages_of_the_program() -> None:
    page = (ROOT / 'docs' / 'guides' / 'troubleshooting.md').read_text('utf-8')
    headings, sources = re.findall(r'^### `([^`]+)`', page, flags=re.M), _sources()
    assert len(headings) > 30
    parts = [part.strip() for heading in headings for part in heading.split('…') if part.strip()]
    assert [part for part in parts if part not in sources] == []


def test_error_page_lists_every_error_of_the_package(hooks: ModuleType) -> None:
    raised = sum(
        len(re.findall(r'\bBadInput\(', path.read_text('utf-8'))) for path in (ROOT / 'bert_jax').rglob('*.py')
    )
    listed = sum(map(len, hooks.messages().values()))
    assert listed > 0.8 * raised  # the others repeat or re-raise one
    page = hooks.messages_page()
    assert 'there is no such field' in page and 'which does not divide' in page


def test_every_warning_is_explained_in_troubleshooting() -> None:
    page = (ROOT / 'docs' / 'guides' / 'troubleshooting.md').read_text('utf-8')
    warnings = re.findall(r"f?'warning: ([^'{]{12,})", _sources())
    explained = [part.strip() for part in re.findall(r'^### `([^`]+)`', page, flags=re.M)]
    unexplained = [
        text
        for text in warnings
        if not any(part.removeprefix('warning: ') in text or text.strip() in part for part in explained)
    ]
    assert warnings and unexplained == []


def test_every_field_of_a_config_has_a_meaning(hooks: ModuleType) -> None:
    for line in hooks.config_page().splitlines():
        if line.startswith('| <span'):
            *_, meaning, role, _ = line.split(' | ') if line.endswith(' | ') else [*line.split(' | '), '']
            assert len(meaning) > 8 and role, line


def test_every_command_and_flag_has_an_anchor(hooks: ModuleType) -> None:
    page = hooks.commands_page()
    for command in hooks.COMMANDS.values():
        assert f'## {command.name}\n' in page
        assert all(f'id="{command.name}-{flag.name}"' in page for flag in command.flags)


QUESTIONS = {
    'install cuda gpu': 'getting-started/installation/',
    'resume a stopped run': 'getting-started/your-own-text/',
    'out of memory': 'guides/distributed/',
    'bring my own vocabulary': 'getting-started/your-own-text/',
    'clean text quality rules': 'guides/clean/',
    'whole word masking': 'guides/batches/',
    'continue pretraining domain text': 'guides/continue-pretraining/',
    'add words to the vocabulary': 'guides/continue-pretraining/',
    'export hugging face transformers': 'guides/use-the-model/',
    'embeddings of sentences': 'guides/use-the-model/',
    'beir ndcg bm25': 'guides/retrieval/',
    'mine hard negatives': 'guides/retrieval/',
    'fine-tune classification seeds': 'guides/fine-tune/',
    'named entity recognition': 'guides/fine-tune/',
    'anneal learning rate branch': 'guides/anneal-and-average/',
    'average weights': 'guides/anneal-and-average/',
    'muon optimizer': 'guides/optimizers/',
    'slurm': 'guides/distributed/',
    'tpu pod bucket': 'guides/distributed/',
    'cost of training on h100': 'guides/plan/',
    'compare vocabularies masked words': 'guides/evaluate/',
    'learning rate sweep': 'guides/sweeps/',
    'tensorboard wandb': 'guides/reports/',
    'damaged checkpoint': 'concepts/fault-tolerance/',
    'train.checkpoint_every': 'reference/config/',
    'tfrecord': 'guides/tfrecords/',
    'modernbert': 'guides/modern-encoders/',
    'import eurobert directory': 'guides/modern-encoders/',
    'add an architecture': 'concepts/adding-an-architecture/',
}


@pytest.fixture(scope='module')
def search(site: pathlib.Path) -> Any:
    """The engine of the site's own search over the site's own index; a word in a title counts for a thousand."""
    from lunr import lunr

    documents = json.loads((site / 'search' / 'search_index.json').read_text('utf-8'))['docs']
    documents = [
        (each | {'text': re.sub('<[^>]+>', ' ', each['text'])}, {'boost': each.get('boost', 1)}) for each in documents
    ]
    fields = [{'field_name': 'title', 'boost': 1000}, 'text']
    return lunr(ref='location', fields=fields, documents=documents)


@pytest.mark.processes  # mkdocstrings runs git
@pytest.mark.parametrize('question', QUESTIONS)
def test_search_finds_the_page_that_answers(search: Any, question: str) -> None:
    pages = [found['ref'].partition('#')[0] for found in search.search(question)]
    assert QUESTIONS[question] in list(dict.fromkeys(pages))[:3], pages
