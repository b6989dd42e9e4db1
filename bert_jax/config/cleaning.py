"""Names of the rules and replacements that clean text, and the rules that a config selects."""

from collections.abc import Iterable

# In the order in which they are applied; `text/cleaning` defines what they do.
C4_RULES = (
    'c4_terminal_punctuation',
    'c4_short_lines',
    'c4_javascript',
    'c4_policy',
    'c4_lorem_ipsum',
    'c4_curly_bracket',
    'c4_sentences',
)
GOPHER_RULES = (
    'gopher_word_count',
    'gopher_word_length',
    'gopher_symbols',
    'gopher_bullets',
    'gopher_ellipses',
    'gopher_letters',
    'gopher_stop_words',
    'gopher_duplicate_lines',
    'gopher_top_ngrams',
    'gopher_duplicate_ngrams',
)
QUALITY_RULES = (*C4_RULES, *GOPHER_RULES)
REDACTED = ('email', 'phone', 'card')
ANY_LANGUAGE = '*'
_GROUPS = {'gopher': GOPHER_RULES, 'c4': C4_RULES}
_NAMES = (*_GROUPS, *QUALITY_RULES)


def selected_rules(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the rules that `data.quality_rules` selects, in the order in which they are applied.

    Args:
      names: of rules or groups, from left to right; '-' before a name takes it out again.
    """
    selected: set[str] = set()
    for name in names:
        rules = _GROUPS.get(name.removeprefix('-'), (name.removeprefix('-'),))
        selected = selected.difference(rules) if name.startswith('-') else selected.union(rules)
    return tuple(rule for rule in QUALITY_RULES if rule in selected)


def are_rules(value: tuple) -> bool:
    """Whether a tuple holds names of rules and groups only, and leaves at least one rule unless it is empty."""
    is_known = all(isinstance(name, str) and name.removeprefix('-') in _NAMES for name in value)
    return is_known and (not value or bool(selected_rules(value)))


def are_languages(value: tuple) -> bool:
    """Whether a tuple holds codes of languages, or only `ANY_LANGUAGE`."""
    are_codes = all(
        isinstance(code, str) and code.isalpha() and code.islower() and len(code) in (2, 3) for code in value
    )
    return value == (ANY_LANGUAGE,) or (are_codes and len({*value}) == len(value))


def are_redacted(value: tuple) -> bool:
    """Whether a tuple holds only what can be redacted, each once."""
    return all(name in REDACTED for name in value) and len({*value}) == len(value)
