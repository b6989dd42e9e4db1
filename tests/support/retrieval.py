"""Writes small retrieval sets in BEIR format."""

import json
from collections.abc import Iterable
from pathlib import Path

Judgement = tuple[str, str, int]


def write_set(
    directory: Path,
    passages: Iterable[dict[str, object]],
    queries: Iterable[dict[str, object]],
    judgements: Iterable[Judgement],
    split: str = 'test',
) -> Path:
    """Writes a set; judgements are (query id, passage id, grade)."""
    (directory / 'qrels').mkdir(parents=True, exist_ok=True)
    write_lines(directory / 'corpus.jsonl', passages)
    write_lines(directory / 'queries.jsonl', queries)
    rows = [f'{query}\t{passage}\t{grade}' for query, passage, grade in judgements]
    (directory / 'qrels' / f'{split}.tsv').write_text('\n'.join(['query-id\tcorpus-id\tscore', *rows, '']))
    return directory


def write_lines(path: Path, objects: Iterable[dict[str, object]]) -> Path:
    """Writes JSON lines."""
    path.write_text(''.join(f'{json.dumps(each)}\n' for each in objects))
    return path


def write_names_set(directory: Path) -> Path:
    """Writes a set with three queries whose words are in the vocabulary of `support.models`."""
    texts = ['ada is in town', 'bob is in the film', 'cleo is in the plot', 'a great end', 'the actor is sad', 'lovely']
    passages = [{'_id': f'd{i}', 'title': '' if i else 'who', 'text': text} for i, text in enumerate(texts)]
    queries = [{'_id': f'q{i}', 'text': f'who is {name}'} for i, name in enumerate(('ada', 'bob', 'cleo'))]
    queries.append({'_id': 'd5', 'text': 'lovely film'})
    judgements = [('q0', 'd0', 2), ('q0', 'd4', 1), ('q1', 'd1', 1), ('d5', 'd1', 1), ('d5', 'd2', 0)]
    return write_set(directory, passages, queries, judgements)
