"""Small labelled files that a small model learns in seconds: reviews, tagged sentences, questions."""

import json
from pathlib import Path

import numpy as np

GOOD, BAD, OTHER = ['fine', 'great', 'lovely'], ['awful', 'dull', 'sad'], ['film', 'plot', 'actor', 'scene', 'end']
NAMES = ['ada', 'bob', 'cleo']


def write_reviews(path: Path, num_rows: int, seed: int) -> None:
    """GLUE's SST-2 layout: the label says which kind of adjective is in the sentence."""
    rng = np.random.default_rng(seed)
    lines = ['sentence\tlabel']
    for _ in range(num_rows):
        label = rng.integers(2)
        words = [*rng.choice(OTHER, rng.integers(1, 6)), rng.choice([BAD, GOOD][label])]
        lines.append(f'{" ".join(rng.permutation(words))}\t{label}')
    path.write_text('\n'.join(lines) + '\n')


def write_sentences(path: Path, num_sentences: int, seed: int) -> None:
    """CoNLL: names are persons, `in town` is a place."""
    rng = np.random.default_rng(seed)
    with path.open('w') as file:
        for _ in range(num_sentences):
            for _ in range(rng.integers(2, 5)):
                kind = rng.integers(3)
                if kind == 0:
                    file.write(f'{rng.choice(NAMES)} O B-PER\n')
                elif kind == 1:
                    file.write(f'{rng.choice(OTHER)} O O\n')
                else:
                    file.write('the O B-LOC\ntown O I-LOC\n')
            file.write('\n')


def squad(paragraphs: list[tuple[str, list[tuple[str, list[tuple[str, int]]]]]]) -> str:
    """SQuAD JSON of (context, [(question, [(answer, start)])]); ids count the questions."""
    found, number = [], 0
    for context, questions in paragraphs:
        asked = []
        for question, answers in questions:
            given = [{'text': text, 'answer_start': start} for text, start in answers]
            asked.append({'id': f'q{number}', 'question': question, 'answers': given})
            number += 1
        found.append({'context': context, 'qas': asked})
    return json.dumps({'version': '1.1', 'data': [{'title': 'T', 'paragraphs': found}]})


def write_questions(path: Path, num_questions: int, seed: int) -> None:
    """Who is in town: the name before `is in town`."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for _ in range(num_questions):
        names = rng.permutation(NAMES)
        parts = [f'{names[0]} is in the {rng.choice(OTHER)}.', f'{names[1]} is in town.']
        context = ' '.join(rng.permutation(parts))
        paragraphs.append((context, [('who is in town?', [(names[1], context.index(names[1]))])]))
    path.write_text(squad(paragraphs))
