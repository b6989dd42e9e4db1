"""Writes small labelled files that a small model learns in seconds: reviews, tagged sentences, questions."""

import json
from pathlib import Path

import numpy as np

GOOD, BAD, OTHER = ['fine', 'great', 'lovely'], ['awful', 'dull', 'sad'], ['film', 'plot', 'actor', 'scene', 'end']
NAMES = ['ada', 'bob', 'cleo']


def write_reviews(path: Path, num_rows: int, seed: int) -> None:
    """Writes GLUE's SST-2 layout; the label is the kind of adjective in the sentence."""
    rng = np.random.default_rng(seed)
    lines = ['sentence\tlabel']
    for _ in range(num_rows):
        label = rng.integers(2)
        words = [*rng.choice(OTHER, rng.integers(1, 6)), rng.choice([BAD, GOOD][label])]
        lines.append(f'{" ".join(rng.permutation(words))}\t{label}')
    path.write_text('\n'.join(lines) + '\n')


def write_sentences(path: Path, num_sentences: int, seed: int) -> None:
    """Writes CoNLL lines; names are persons, `the town` is a location."""
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
    """Returns SQuAD JSON of (context, [(question, [(answer, start)])]); questions are numbered from q0."""
    entries, num_questions = [], 0
    for context, questions in paragraphs:
        qas = []
        for question, answers in questions:
            spans = [{'text': text, 'answer_start': start} for text, start in answers]
            qas.append({'id': f'q{num_questions}', 'question': question, 'answers': spans})
            num_questions += 1
        entries.append({'context': context, 'qas': qas})
    return json.dumps({'version': '1.1', 'data': [{'title': 'T', 'paragraphs': entries}]})


def write_questions(path: Path, num_questions: int, seed: int) -> None:
    """Writes SQuAD questions; the answer is the name before `is in town`."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for _ in range(num_questions):
        names = rng.permutation(NAMES)
        parts = [f'{names[0]} is in the {rng.choice(OTHER)}.', f'{names[1]} is in town.']
        context = ' '.join(rng.permutation(parts))
        paragraphs.append((context, [('who is in town?', [(names[1], context.index(names[1]))])]))
    path.write_text(squad(paragraphs))


def write_rankings(path: Path, num_queries: int, seed: int) -> None:
    """Writes pairs of query and passage as JSON lines; the passage with a good adjective is relevant."""
    rng = np.random.default_rng(seed)
    with path.open('w') as file:
        for index in range(num_queries):
            query = f'{rng.choice(OTHER)} {index}'
            for place, label in enumerate(rng.permutation([1, 0, 0])):
                passage = ' '.join([rng.choice(OTHER), str(rng.choice([BAD, GOOD][label])), str(place)])
                file.write(json.dumps({'query': query, 'passage': passage, 'label': int(label)}) + '\n')
