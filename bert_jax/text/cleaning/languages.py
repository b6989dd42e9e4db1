"""Identifies the language of a document with py3langid, whose model is part of the package (extra `languages`)."""

import functools
import importlib
import importlib.util
import re
from collections.abc import Iterable

from bert_jax.config.cleaning import ANY_LANGUAGE
from bert_jax.errors import BadInput

UNKNOWN = 'und'  # of ISO 639: undetermined
_MAX_CHARACTERS = 500  # of a document, from its beginning
_LETTER = re.compile(r'[^\W\d_]')
_FIX = "pip install -e '.[languages]'"


def check_languages(languages: Iterable[str]) -> None:
    """Checks that the languages to keep can be identified.

    Raises:
      BadInput: for a language that the model does not know, or if py3langid is not installed.
    """
    languages = [code for code in languages if code != ANY_LANGUAGE]
    if importlib.util.find_spec('py3langid') is None:
        raise BadInput('config.data.languages', 'needs py3langid, which is not installed', 'the extra languages', _FIX)
    known = sorted({*_identifier().labels})
    if unknown := [code for code in languages if code not in known]:
        found = f'names {unknown[0]!r}, which the model of py3langid does not know'
        raise BadInput('config.data.languages', found, ', '.join(known))


def language_of(text: str) -> str:
    """Returns the ISO 639 code of the language of a text; `UNKNOWN` for a text without letters."""
    beginning = text[:_MAX_CHARACTERS]
    return _identifier().classify(beginning)[0] if _LETTER.search(beginning) else UNKNOWN


@functools.cache
def _identifier():
    return importlib.import_module('py3langid.langid').LanguageIdentifier.from_model_file('data/model.npz.xz')
