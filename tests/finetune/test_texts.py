"""Files of texts become rows, with columns found by name; errors name the file and line."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config.finetuning import Task, Train, resolve
from bert_jax.data.labelled import read_records
from bert_jax.errors import BadInput
from bert_jax.finetune.splits import sample_examples
from bert_jax.finetune.tasks import TaskData, read_task
from bert_jax.finetune.texts import cut_pair
from tests.support.models import read_tokenizer
from tests.support.texts import write_tfds_records

ROOT = Path(__file__).parents[2]
# The columns of GLUE's files as handed out, and two rows of each; test files have no label and other columns.
GLUE = {
    'cola': ('', ['gj04\t1\t\tgood film.', 'gj04\t0\t*\tfilm good the.'], 'index\tsentence'),
    'sst2': ('sentence\tlabel', ['good film \t1', 'bad film \t0'], 'index\tsentence'),
    'mrpc': (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String',
        ['1\t7\t8\tthe "film\tthe film', '0\t8\t9\tthe end\tthe plot'],
        'index\t#1 ID\t#2 ID\t#1 String\t#2 String',
    ),
    'stsb': (
        'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore',
        ['0\tg\tf\t2012\t1\tn\tn\ta film\tthe film\t4.500', '1\tg\tf\t2012\t1\tn\tn\ta film\tan end\t0.000'],
        'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2',
    ),
    'qqp': (
        'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate',
        ['0\t1\t2\twho is in town?\twho?\t0', '1\t3\t4\twho?\twho is?\t1'],
        'id\tquestion1\tquestion2',
    ),
    'mnli': (
        'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t'
        'sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label',
        [
            f'{n}\t1\t1e\tfiction\tb\tb\tp\tp\ta film\tthe end\t{label}\t{label}'
            for n, label in enumerate(['neutral', 'entailment', 'contradiction'])
        ],
        'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t'
        'sentence2_parse\tsentence1\tsentence2',
    ),
    'qnli': (
        'index\tquestion\tsentence\tlabel',
        ['0\twho is in town?\tbob is.\tentailment', '1\twho?\tthe end.\tnot_entailment'],
        'index\tquestion\tsentence',
    ),
    'rte': (
        'index\tsentence1\tsentence2\tlabel',
        ['0\tbob is in town.\tbob is.\tentailment', '1\tthe end.\tbob is.\tnot_entailment'],
        'index\tsentence1\tsentence2',
    ),
    'wnli': (
        'index\tsentence1\tsentence2\tlabel',
        ['0\tbob is.\tada is.\t1', '1\tthe end.\tbob is.\t0'],
        'index\tsentence1\tsentence2',
    ),
}
CLASSES = {'mnli': ('contradiction', 'entailment', 'neutral'), 'stsb': ()}
CLASSES |= dict.fromkeys(('qnli', 'rte'), ('entailment', 'not_entailment'))


def _config(name: str) -> dict:
    spec = importlib.util.spec_from_file_location('glue', ROOT / 'configs' / 'finetune' / 'glue.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(name).to_dict()


@pytest.mark.parametrize('name', GLUE)
def test_glue_files_are_read_and_tests_need_no_label(name: str, tmp_path: Path) -> None:
    header, rows, test_header = GLUE[name]
    config = _config(name)
    validation = config['task']['validation']
    for source in ('tsv:train.tsv', *([validation] if isinstance(validation, str) else validation)):
        lines = [header] * bool(header) + rows
        (tmp_path / source.partition(':')[2]).write_text('\n'.join(lines) + '\n')
    columns = test_header.split('\t')
    (tmp_path / 'test.tsv').write_text(f'{test_header}\n' + '\t'.join(f'film {n}' for n in range(len(columns))) + '\n')
    config['task'] |= {'directory': str(tmp_path), 'predict': 'tsv:test.tsv'}
    resolved = resolve(config | {'init': 'models/any'})
    data = read_task(resolved.task, resolved.train, read_tokenizer(tmp_path))
    assert len(data.train) == len(rows) and data.labels == CLASSES.get(name, ('0', '1'))
    assert list(data.validation) == (['dev_matched', 'dev_mismatched'] if name == 'mnli' else ['dev'])
    assert data.predict.num_examples == 1 and data.predict.gold == []
    is_pair = bool((data.train.second_starts < np.diff(data.train.starts)).all())
    assert is_pair == (name not in ('cola', 'sst2'))
    if name == 'stsb':
        np.testing.assert_array_equal(data.train.labels, np.float32([4.5, 0.0]))


def _open(tmp_path: Path, content: str, name: str, **task: object) -> TaskData:
    (tmp_path / name).write_text(content)
    source = f'{name.rpartition(".")[2]}:{name}'
    values = {'directory': str(tmp_path), 'train': source, 'validation': source, 'sequence_length': 16} | task
    return read_task(Task(**values), Train(), read_tokenizer(tmp_path))


def _texts(data: TaskData, tmp_path: Path) -> list[str]:
    tokenizer, rows = read_tokenizer(tmp_path), data.train
    return [tokenizer.decode(rows.ids[a:b]) for a, b in zip(rows.starts, rows.starts[1:], strict=False)]


def test_csv_json_lines_and_compressed_files_are_equal(tmp_path: Path) -> None:
    csv = 'sentence,label\n"a film, the\nend",yes\nthe plot,no\n'
    lines = '{"sentence": "a film, the end", "label": "yes"}\n\n{"label": "no", "sentence": "the plot"}\n'
    opened = [_open(tmp_path, csv, 'a.csv'), _open(tmp_path, lines, 'a.jsonl')]
    (tmp_path / 'b.tsv.gz').write_bytes(gzip.compress(b'sentence\tlabel\na film, the end\tyes\nthe plot\tno\n'))
    task = Task(directory=str(tmp_path), train='tsv:b.tsv.gz', validation='tsv:b.tsv.gz', sequence_length=16)
    opened.append(read_task(task, Train(), read_tokenizer(tmp_path)))
    assert {data.content_hash for data in opened} == {opened[0].content_hash}
    assert _texts(opened[0], tmp_path) == ['a film, the end', 'the plot'] and opened[0].labels == ('no', 'yes')


def test_tfds_class_names_become_labels(tmp_path: Path, monkeypatch) -> None:
    tfds = pytest.importorskip('tensorflow_datasets')
    features = {'sentence': tfds.features.Text(), 'label': tfds.features.ClassLabel(names=['worse', 'better'])}
    records = [{'sentence': 'a film', 'label': 1}, {'sentence': 'the end', 'label': 0}]
    write_tfds_records(tmp_path, 'reviews', features, records)
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
    task = Task(train='tfds:reviews', validation='tfds:reviews:1.0.0:train', sequence_length=16)
    data = read_task(task, Train(), read_tokenizer(tmp_path))
    assert data.labels == ('better', 'worse') and data.train.labels.tolist() == [0, 1]


def test_long_pairs_are_cut_like_the_original() -> None:
    def as_in_the_original(a: int, b: int, room: int) -> tuple[int, int]:
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        return a, b

    for room in (1, 2, 5, 8):
        for a in range(12):
            for b in range(12):
                assert cut_pair(a, b, room) == as_in_the_original(a, b, room), (a, b, room)


@pytest.mark.parametrize(
    'content, task, words',
    [
        ('sentence\tlable\na\t1\n', {}, "a.tsv:1: has no column 'label'"),
        ('a film\t1\n', {'columns': ('text', 'label')}, "has no column 'sentence'"),
        ('sentence\tlabel\na\t1\nb\tgood\n', {'labels': ('0', '1')}, "a.tsv:3: has the label 'good'"),
        ('sentence\tlabel\na\t1\nb\t1\n', {}, 'at least two labels'),
        ('sentence\tlabel\na\t1.5\nb\tnan\n', {'kind': 'regression'}, "a.tsv:3: has the label 'nan'"),
        ('sentence\tlabel\na\t1\nb\n', {}, "a.tsv:3: has no 'label'; 1 of 2 records"),
        ('sentence\tlabel\n', {}, 'contains no example'),
    ],
)
def test_invalid_record_is_reported_with_its_position(content: str, task: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        _open(tmp_path, content, 'a.tsv', **task)
    assert words in str(caught.value)


def test_label_absent_from_training_is_reported(tmp_path: Path) -> None:
    (tmp_path / 'dev.tsv').write_text('sentence\tlabel\na\t1\nb\t2\n')
    with pytest.raises(BadInput, match="dev.tsv:3: has the label '2', which is not in the training file"):
        _open(tmp_path, 'sentence\tlabel\na\t1\nb\t0\n', 'a.tsv', validation='tsv:dev.tsv')


def test_messages_do_not_show_text_used_as_label(tmp_path: Path) -> None:
    (tmp_path / 'dev.tsv').write_text('sentence\tlabel\na\ta secret of a patient that nobody may see, ever\nb\t1\n')
    content = 'sentence\tlabel\na\t1\nb\t0\n'
    texts = [
        ('dev.tsv', content, {'validation': 'tsv:dev.tsv'}),
        ('a.tsv', (tmp_path / 'dev.tsv').read_text(), {}),
        ('a.tsv', (tmp_path / 'dev.tsv').read_text(), {'kind': 'regression'}),
    ]
    for where, given, task in texts:
        with pytest.raises(BadInput) as caught:
            _open(tmp_path, given, 'a.tsv', **task)
        assert where in str(caught.value) and 'characters' in str(caught.value)
        assert 'secret' not in str(caught.value)


def test_few_bad_records_are_skipped_and_counted(tmp_path: Path, capsys) -> None:
    rows = ''.join(f'film {n}\t{n % 2}\n' for n in range(9))
    data = _open(tmp_path, f'sentence\tlabel\n{rows}broken\n', 'a.tsv', bad_records=0.1)
    assert len(data.train) == 9 and 'training: 9 examples; 1 x record without a column' in capsys.readouterr().err


def test_text_in_another_encoding_is_rejected(tmp_path: Path) -> None:
    rows = ''.join(f'für Film {n}\t{n % 2}\n' for n in range(20))
    assert len(_open(tmp_path, 'sentence\tlabel\n' + rows, 'a.tsv').train) == 20
    (tmp_path / 'a.tsv').write_bytes(('sentence\tlabel\n' + rows).encode('windows-1252'))
    with pytest.raises(BadInput, match='a.tsv: holds 20 bytes that are not UTF-8'):
        list(read_records('tsv:a.tsv', Task(directory=str(tmp_path)), ('sentence', 'label')))


def test_subset_is_independent_of_seed_and_keeps_order(tmp_path: Path) -> None:
    rows = ''.join(f'{chr(97 + n // 10)}{n % 10}\t{n % 2}\n' for n in range(100))
    data = _open(tmp_path, 'sentence\tlabel\n' + rows, 'a.tsv')
    some = sample_examples(data.train, np.arange(100), 30)
    texts = [tuple(some.ids[a:b]) for a, b in zip(some.starts, some.starts[1:], strict=False)]
    whole = [tuple(data.train.ids[a:b]) for a, b in zip(data.train.starts, data.train.starts[1:], strict=False)]
    places = [whole.index(text) for text in texts]
    assert len(some) == 30 and places == sorted(places) and some.labels.tolist() == [n % 2 for n in places]
    windows = sample_examples(data.train, np.arange(100) // 2, 15)  # both rows of an example, or none
    assert len(windows) == 30 and windows.labels.tolist() == [0, 1] * 15
