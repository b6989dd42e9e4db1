"""What the documents say about this repository is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATH = re.compile(r'(?<![\w./~-])(?:tests|bert_jax|configs)/[\w./-]*\w/?')


@pytest.mark.parametrize('document', ['README.md', 'CONTRIBUTING.md', 'benchmarks/LOG.md'])
def test_every_path_that_a_document_names_exists(document: str) -> None:
    named = set(PATH.findall((ROOT / document).read_text()))
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing
