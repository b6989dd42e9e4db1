"""`embed` reads and writes several formats, keeps the order of the input, resumes, and rejects bad input early."""

import gzip
import json
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from safetensors.numpy import load_file

from bert_jax.__main__ import main
from bert_jax.pretrained import embed as embed_module
from bert_jax.pretrained import embed_output
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import SentenceSettings, write_settings
from bert_jax.pretrained.vectors import TextEncoder, plan_batches
from bert_jax.text.tokenizer import load_tokenizer
from tests.support.models import TOKENS, write_model
from tests.support.processes import Running, command, environment

D = 32  # hidden size
SETTINGS = SentenceSettings('', max_length=24, normalize=True, prompts={'query': 'who is ', 'document': ''})
TEXTS = ['the film', '', 'ada, "bob" is in town. cleo', 'Fine FINE\u00fc', ' '.join(['film'] * 40), 'town']


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = write_model(tmp_path_factory.mktemp('embed') / 'model')
    load_tokenizer(directory / 'vocab.txt', lowercase=True, strip_accents=False).save(directory, 24)
    write_settings(directory, SETTINGS, D)
    return str(directory)


@pytest.fixture(scope='module')
def expected(model: str) -> np.ndarray:
    return TextEncoder(load_pretrained(model), SETTINGS).encode(TEXTS)[0]


def run(model: str, source: object, output: Path, *flags: str) -> int:
    return main(['bert_jax', 'embed', f'--model={model}', f'--input={source}', f'--output={output}', *flags])


def write_input(directory: Path, name: str) -> Path:
    """Writes `TEXTS` in the format and compression of a file name."""
    path, kind = directory / name, name.removesuffix('.gz').removesuffix('.zst').rpartition('.')[2]
    if kind == 'parquet':
        parquet.write_table(pyarrow.table({'id': [*range(len(TEXTS))], 'text': TEXTS}), path)
        return path
    quoted = [text.replace('"', '""') for text in TEXTS]
    content = {
        'txt': '\n'.join(TEXTS),
        'jsonl': '\n'.join(json.dumps({'id': f'n{i}', 'text': text}) for i, text in enumerate(TEXTS)),
        'csv': 'id,text\n' + '\n'.join(f'n{i},"{text}"' for i, text in enumerate(quoted)),
        'tsv': 'id\ttext\n' + '\n'.join(f'n{i}\t{text}' for i, text in enumerate(TEXTS)),
    }[kind].encode()
    compress = {'.gz': gzip.compress, '.zst': zstandard.ZstdCompressor().compress}
    path.write_bytes(compress.get(path.suffix, bytes)(content))
    return path


def read_output(path: Path) -> np.ndarray:
    if path.suffix == '.npy':
        return np.load(path)
    if path.suffix == '.safetensors':
        return load_file(path)['embeddings']
    return np.array(parquet.read_table(path)['vector'].to_pylist(), np.float32).reshape(-1, D)


@pytest.mark.compiles
@pytest.mark.parametrize(
    'name', ['in.txt', 'in.txt.zst', 'in.jsonl', 'in.jsonl.gz', 'in.csv', 'in.tsv.gz', 'in.parquet']
)
@pytest.mark.parametrize('suffix', ['.npy', '.safetensors', '.parquet'])
def test_every_format_gives_the_same_vectors(
    name: str, suffix: str, model: str, expected: np.ndarray, tmp_path: Path
) -> None:
    output = tmp_path / f'out{suffix}'
    assert run(model, write_input(tmp_path, name), output) == 0
    np.testing.assert_allclose(read_output(output), expected, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {name, output.name}
    if suffix == '.parquet' and 'txt' not in name:
        ids = parquet.read_table(output)['id'].to_pylist()
        assert ids == ([*range(6)] if name == 'in.parquet' else [f'n{i}' for i in range(6)])


@pytest.mark.compiles
@pytest.mark.parametrize(
    'ids, is_integer',
    [([3, 4, -5, 2**63 - 1], True), ([1, 2, 3, 'd'], False), ([1, 2, 3, 2**63], False), ([1, 2.5, True, 'a'], False)],
)
def test_ids_of_all_row_groups_have_one_type(
    ids: list[object], is_integer: bool, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_output, '_VECTORS_AT_ONCE', 2)
    lines = [json.dumps({'id': each, 'text': 'film'}) for each in ids]
    (tmp_path / 'in.jsonl').write_text('\n'.join(lines))
    assert run(model, tmp_path / 'in.jsonl', tmp_path / 'out.parquet') == 0
    found = parquet.read_table(tmp_path / 'out.parquet')['id'].to_pylist()
    assert found == (ids if is_integer else [str(each) for each in ids])


@pytest.mark.compiles
@pytest.mark.parametrize('suffix', ['.npy', '.safetensors', '.parquet'])
def test_empty_input_gives_no_vectors(suffix: str, model: str, tmp_path: Path) -> None:
    (tmp_path / 'in.txt').write_text('')
    assert run(model, tmp_path / 'in.txt', tmp_path / f'out{suffix}') == 0
    assert read_output(tmp_path / f'out{suffix}').shape == (0, D)


@pytest.mark.compiles
def test_interrupted_command_resumes_with_the_same_output(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    texts = [' '.join(rng.choice(TOKENS[60:], rng.integers(0, 30))) for _ in range(50)]
    (tmp_path / 'in.txt').write_text('\n'.join(texts))
    monkeypatch.setattr(embed_module, '_TEXTS_AT_ONCE', 8)
    assert run(model, tmp_path / 'in.txt', tmp_path / 'whole.npy') == 0
    vectors, computed = TextEncoder._vectors, []

    def interrupt(self: TextEncoder, input_ids: list[list[int]]) -> np.ndarray:
        computed.append(len(input_ids))
        if len(computed) == 4:
            raise KeyboardInterrupt
        return vectors(self, input_ids)

    monkeypatch.setattr(TextEncoder, '_vectors', interrupt)
    output = tmp_path / 'out.npy'
    assert run(model, tmp_path / 'in.txt', output) != 0
    assert 'the same command resumes' in capsys.readouterr().err and not output.exists()
    assert run(model, tmp_path / 'in.txt', output, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    assert (found['resumed_from'], found['lines'], sum(computed[4:])) == (24, 50, 26)
    np.testing.assert_array_equal(np.load(output), np.load(tmp_path / 'whole.npy'))
    computed[:] = []
    assert run(model, tmp_path / 'in.txt', output) != 0
    (tmp_path / 'in.txt').write_text('\n'.join(['another', *texts]))
    assert run(model, tmp_path / 'in.txt', output, '--json') == 0
    assert json.loads(capsys.readouterr().out)['resumed_from'] == 0 and len(np.load(output)) == 51
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.txt', 'out.npy', 'whole.npy']


@pytest.mark.compiles
@pytest.mark.processes
def test_killed_command_resumes_with_the_same_output(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 30, 12_000)
    (tmp_path / 'in.txt').write_text('\n'.join(' '.join(rng.choice(TOKENS[60:], length)) for length in lengths))
    flags = [f'--model={model}', f'--input={tmp_path}/in.txt', f'--output={tmp_path}/out.npy']
    job = tmp_path / '.out.npy.partial' / 'job.json'
    with Running(command('embed', *flags), environment()) as running:
        while not job.exists():
            assert running.process.poll() is None, running.text
            time.sleep(0.002)
        running.send(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / 'out.npy').exists()
    done = json.loads(job.read_text())['num_done']
    assert run(model, tmp_path / 'in.txt', tmp_path / 'out.npy', '--json') == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found['resumed_from'] == done < found['lines'] == len(lengths)
    assert run(model, tmp_path / 'in.txt', tmp_path / 'whole.npy') == 0
    np.testing.assert_allclose(np.load(tmp_path / 'out.npy'), np.load(tmp_path / 'whole.npy'), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.txt', 'out.npy', 'whole.npy']


@pytest.mark.compiles
def test_prompts_dims_and_dtype(model: str, expected: np.ndarray, tmp_path: Path) -> None:
    source, output = write_input(tmp_path, 'in.txt'), tmp_path / 'out.npy'
    vectors = {}
    for flag in ('--prompt_name=query', '--prompt=who is ', '--prompt_name=document', '--dims=8', '--dtype=bfloat16'):
        assert run(model, source, output, flag) == 0
        vectors[flag] = np.load(output)
    np.testing.assert_array_equal(vectors['--prompt_name=query'], vectors['--prompt=who is '])
    asked = TextEncoder(load_pretrained(model), SETTINGS).encode([f'who is {text}' for text in TEXTS])[0]
    np.testing.assert_allclose(vectors['--prompt_name=query'], asked, atol=1e-6)
    np.testing.assert_allclose(vectors['--prompt_name=document'], expected, atol=1e-6)
    short = expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors['--dims=8'], short, atol=1e-6)
    difference = np.abs(vectors['--dtype=bfloat16'] - expected).max()
    assert 1e-5 < difference < 0.05


@pytest.mark.parametrize(
    'name, content, flags, words',
    [
        (
            'in.jsonl',
            '{"text": "a"}\n{"body": "b"}\n',
            (),
            ["in.jsonl:2: has no 'text'", 'it has body', '--text_field'],
        ),
        ('in.jsonl', '{"text": "a"}\n{"text": 3}\n', (), ["in.jsonl:2: 'text' is of type int"]),
        ('in.jsonl', '{"text": "a"}\n{\n', (), ['in.jsonl:2']),
        ('in.csv', 'body\nb\n', (), ["in.csv:2: has no 'text'"]),
        ('in.parquet', 'no', (), ['in.parquet']),
        ('in.txt', 'a', ('--dims=33',), ['--dims=33', '1 to 32']),
        ('in.txt', 'a', ('--prompt_name=passage',), ['--prompt_name=passage', 'query, document']),
        ('in.txt', 'a', ('--prompt_name=query', '--prompt=q'), ['--prompt: is given together with --prompt_name']),
    ],
)
def test_bad_input_is_reported_and_nothing_is_written(
    name: str, content: str, flags: tuple[str, ...], words: list[str], model: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / name).write_text(content)
    assert run(model, tmp_path / name, tmp_path / 'out.npy', *flags) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_batches_hold_every_text_once_with_little_padding() -> None:
    lengths = (2 + np.random.default_rng(0).exponential(60, 5000)).astype(int).clip(2, 512).tolist()
    batches = plan_batches(lengths, 512)
    assert sorted(row for rows, _, _ in batches for row in rows) == [*range(5000)]
    assert all(len(rows) <= num_rows and max(lengths[row] for row in rows) <= L for rows, num_rows, L in batches)
    assert len({(num_rows, length) for _, num_rows, length in batches}) <= 24
    assert sum(num_rows * length for _, num_rows, length in batches) < 1.15 * sum(lengths)
    assert plan_batches([], 512) == []
