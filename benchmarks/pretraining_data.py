"""The text and task files of `benchmarks.pretraining_pays`."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

_HELD_OUT_EVERY = 50  # the interval of reviews that are held out
_DEV_EVERY = 5  # the interval of paragraphs of XQuAD for validation


def write_reviews(source: Path, directory: Path, limit: int) -> dict[str, int]:
    """Writes the reviews without `<br />` to train.jsonl and every fiftieth to held_out.jsonl; returns the counts."""
    directory.mkdir(parents=True, exist_ok=True)
    counts = {'train': 0, 'held_out': 0}
    opened = gzip.open if source.suffix == '.gz' else open
    with (
        opened(source, 'rt', encoding='utf-8') as lines,
        open(directory / 'train.jsonl', 'w', encoding='utf-8') as train,
        open(directory / 'held_out.jsonl', 'w', encoding='utf-8') as held_out,
    ):
        for index, line in enumerate(lines):
            if limit and index >= limit:
                break
            text = json.loads(line)['text'].replace('<br />', '\n')
            is_held_out = index % _HELD_OUT_EVERY == 0
            print(json.dumps({'text': text}), file=held_out if is_held_out else train)
            counts['held_out' if is_held_out else 'train'] += 1
    return counts


def subset(lines: list[str], count: int, seed: int = 0) -> list[str]:
    """Returns the header of a GLUE file and `count` examples sampled by `seed`, in the order of the file."""
    header, *examples = lines
    return [header, *(examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), count)))]


def split_paragraphs(squad: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (train, dev) of a file in SQuAD format; every fifth paragraph is in dev, with all its questions."""
    paragraphs = [paragraph for article in squad['data'] for paragraph in article['paragraphs']]
    dev = paragraphs[::_DEV_EVERY]
    train = [paragraph for index, paragraph in enumerate(paragraphs) if index % _DEV_EVERY]
    return tuple({'version': '1.1', 'data': [{'title': '', 'paragraphs': split}]} for split in (train, dev))
