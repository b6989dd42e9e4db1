"""A small model directory and small files of examples for the tests of fine-tuning."""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.__main__ import main
from bert_jax.model.bert import BertForPreTraining
from bert_jax.pretrained import hugging_face
from bert_jax.text.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer

MODEL = config.Model(num_layers=1, hidden_size=32, num_heads=2, intermediate_size=48, max_positions=32)
GOOD, BAD, OTHER = ['fine', 'great', 'lovely'], ['awful', 'dull', 'sad'], ['film', 'plot', 'actor', 'scene', 'end']
NAMES = ['ada', 'bob', 'cleo']
TOKENS = [
    *SPECIAL_TOKENS,
    *'.,?\'"()',
    *'abcdefghijklmnopqrstuvwxyz0123456789',
    *(f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz0123456789'),
    *GOOD,
    *BAD,
    *OTHER,
    *NAMES,
    *('the', 'who', 'is', 'in', 'town'),
]


def write_model(directory: Path, model: config.Model = MODEL) -> Path:
    """An untrained BERT with its vocabulary, as a Hugging Face directory."""
    directory.mkdir(parents=True)
    (directory / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    rng = np.random.default_rng(0)
    shapes = nnx.state(nnx.eval_shape(lambda: BertForPreTraining(model, len(TOKENS), nnx.Rngs(0))), nnx.Param)
    flat = {
        path: leaf.replace(
            np.float32(path[-1] == 'scale') + 0.1 * rng.standard_normal(leaf.get_value().shape, np.float32)
        )
        for path, leaf in nnx.to_flat_state(shapes)
    }
    params = nnx.from_flat_state(flat)
    hugging_face.write_model(directory, params, model, len(TOKENS), pad_id=0)
    return directory


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of `TOKENS`."""
    path = directory / 'vocab.txt'
    path.write_text(''.join(f'{token}\n' for token in TOKENS))
    return load_tokenizer(path, lowercase=True, strip_accents=False)


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


def run(arguments: list[str], place: Path) -> int:
    """A command's exit status; ml_collections looks for overrides in `sys.argv`."""
    arguments = list(map(str, arguments))
    with mock.patch.object(sys, 'argv', ['bert_jax', *arguments]), contextlib.chdir(place):
        return main(sys.argv)
