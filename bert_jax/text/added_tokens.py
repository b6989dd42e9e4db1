"""Words of a domain, appended to a vocabulary that exists."""

import pathlib

from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.text.tokenizer import Tokenizer, WordPiece

_SHOWN = 10


def add_tokens(tokenizer: Tokenizer, path: str) -> WordPiece:
    """The tokenizer with the words of a file (one a line) at the end of its vocabulary; all other ids stay.

    Blank lines, repetitions, and words that are tokens already are passed over, and counted on standard error. Words
    are added as the vocabulary writes them: in lower case where it is uncased.

    Raises:
      BadInput: for a vocabulary other than WordPiece, a file that cannot be read or brings nothing new, and for lines
        that can never be one token (blanks or punctuation inside, '##'), by their numbers.
    """
    where = 'config.tokenizer.add_tokens'
    if not isinstance(tokenizer, WordPiece):
        raise BadInput(where, f'is set, and the tokenizer is a {tokenizer.kind} model', 'WordPiece', 'leave it empty')
    try:
        lines = pathlib.Path(path).read_bytes().decode('utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f'{where}={path}', f'cannot be read ({error})', 'a UTF-8 file, a word a line') from error
    known, new, passed_over = set(tokenizer.tokens), {}, {'blank': 0, 'repeated': 0, 'in the vocabulary already': 0}
    for number, line in enumerate(lines, start=1):
        word = tokenizer.normalize(line).strip()
        if not word:
            passed_over['blank'] += 1
        elif word in known:
            passed_over['in the vocabulary already'] += 1
        elif word in new:
            passed_over['repeated'] += 1
        else:
            new[word] = number
    if not new:
        raise BadInput(f'{where}={path}', 'holds no word that is not a token already', 'new words, one a line')
    extended = tokenizer.extended(list(new))
    pieces = extended.encode_batch(list(new))
    split = [new[word] for word, ids in zip(new, pieces, strict=True) if len(ids) != 1 or ids == [extended.unk_id]]
    if split:
        more = f' and {len(split) - _SHOWN} more' if len(split) > _SHOWN else ''
        raise BadInput(
            f'{where}={path}',
            f'line {", ".join(map(str, split[:_SHOWN]))}{more}: can never be one token, as text is split there first',
            'whole words, without blanks, punctuation or ##',
            'take these lines out, or write their parts on lines of their own',
        )
    told = ''.join(f'; {count} {reason}' for reason, count in passed_over.items() if count)
    say(f'{path}: {len(new)} tokens added to {tokenizer.vocab_size}{told}')
    return extended
