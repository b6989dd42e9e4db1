"""Describes what `prepare` drops and replaces, for people."""

from collections.abc import Mapping

from bert_jax.console import quantity
from bert_jax.text.cleaning.rules import RULES

# {reason, a key of `dropped` in the manifest: (singular, plural)}
REASONS = {
    'bad_record_skipped': ('bad record', 'bad records'),
    'boilerplate_line': ('boilerplate line', 'boilerplate lines'),
    'card_number_replaced': ('card number (replaced)', 'card numbers (replaced)'),
    'document_of_dropped_lines': ('document of dropped lines only', 'documents of dropped lines only'),
    'document_of_duplicate_lines': ('document of duplicate lines only', 'documents of duplicate lines only'),
    'document_of_near_duplicates': ('document of near copies only', 'documents of near copies only'),
    'duplicate_document': ('duplicate document', 'duplicate documents'),
    'duplicate_line': ('duplicate line', 'duplicate lines'),
    'email_replaced': ('e-mail address (replaced)', 'e-mail addresses (replaced)'),
    'empty_document': ('empty document', 'empty documents'),
    'empty_file': ('empty file', 'empty files'),
    'empty_sentence': ('sentence without tokens', 'sentences without tokens'),
    'invalid_bytes': ('byte of invalid UTF-8 (replaced)', 'bytes of invalid UTF-8 (replaced)'),
    'invalid_utf8_replaced': ('line with invalid UTF-8', 'lines with invalid UTF-8'),
    'long_document_cut': ('cut in a long document', 'cuts in long documents'),
    'long_line_split': ('split of a long line', 'splits of long lines'),
    'near_duplicate_document': ('near copy of a document', 'near copies of documents'),
    'near_duplicate_paragraph': ('near copy of a paragraph', 'near copies of paragraphs'),
    'nul_bytes_removed': ('NUL byte', 'NUL bytes'),
    'other_content_type': ('web archive record of another type', 'web archive records of other types'),
    'other_language': ('document in another language', 'documents in other languages'),
    'phone_number_replaced': ('phone number (replaced)', 'phone numbers (replaced)'),
    'thinned_by_weight': ('document left out by a source weight', 'documents left out by source weights'),
    'unparsable_module': ('Python file that does not parse', 'Python files that do not parse'),
}
REASONS |= {name: (f'{rule.unit} ({name})', f'{rule.unit}s ({name})') for name, rule in RULES.items()}


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """Returns what was dropped and replaced, by reason, as one line."""
    return ', '.join(
        quantity(count, *REASONS.get(reason, (reason.replace('_', ' '),))) for reason, count in dropped.items()
    )
