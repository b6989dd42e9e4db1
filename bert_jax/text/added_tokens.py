"""Appends domain words to an existing vocabulary."""

import pathlib

from bert_jax.console import quantity, say
from bert_jax.errors import BadInput
from bert_jax.text.tokenizer import Tokenizer

_NUM_SHOWN = 10


def add_tokens(tokenizer: Tokenizer, path: str) -> Tokenizer:
    """Appends the words of a file (one per line) to a vocabulary; existing ids do not change.

    Blank lines, repetitions and words that are already tokens are skipped, and counted on standard error. Words are
    normalized as the vocabulary is: to lower case if it is uncased.

    Raises:
      BadInput: for a file that cannot be read or holds no new word, and for lines that can never be one token (with
        blanks inside; for WordPiece, with punctuation or '##'); the message gives their numbers.
    """
    where = 'config.tokenizer.add_tokens'
    try:
        lines = pathlib.Path(path).read_bytes().decode('utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f'{where}={path}', f'cannot be read ({error})', 'a UTF-8 file, one word per line') from error
    known, new, skipped = set(tokenizer.tokens), {}, {'blank': 0, 'repeated': 0, 'already in the vocabulary': 0}
    for line_number, line in enumerate(lines, start=1):
        word = tokenizer.normalize(line).strip()
        if not word:
            skipped['blank'] += 1
        elif word in known:
            skipped['already in the vocabulary'] += 1
        elif word in new:
            skipped['repeated'] += 1
        else:
            new[word] = line_number
    if not new:
        raise BadInput(f'{where}={path}', 'holds no new word', 'words that are not in the vocabulary yet, one per line')
    extended = tokenizer.extended(list(new))
    texts = [extended.word_text(index) for index in range(tokenizer.vocab_size, extended.vocab_size)]
    encoded = zip(new, texts, extended.encode_batch(texts), strict=True)
    split = [
        new[word] for word, text, ids in encoded if len(ids) != 1 or ids == [extended.unk_id] or len(text.split()) != 1
    ]
    if split:
        more = f' and {len(split) - _NUM_SHOWN} more' if len(split) > _NUM_SHOWN else ''
        raise BadInput(
            f'{where}={path}',
            f'{"line" if len(split) == 1 else "lines"} {", ".join(map(str, split[:_NUM_SHOWN]))}{more} can never be '
            'one token, because text is split there before tokens are looked up',
            'whole words, without blanks, punctuation or ##',
            'delete these lines, or write each of their words on its own line',
        )
    skips = ', '.join(f'{count:,} {reason}' for reason, count in skipped.items() if count)
    added = f'added {quantity(len(new), "token")} to the {tokenizer.vocab_size:,} of the vocabulary'
    say(f'{path}: {added}' + (f'; skipped lines: {skips}' if skips else ''))
    return extended
