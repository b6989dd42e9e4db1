"""Any content of a file or field gives a message or a result: no other exception, and bounded memory."""

import copy
import dataclasses
import json
import resource
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bert_jax import config
from bert_jax.data.tfrecords import decode, read_frames
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.text.corpus import load_corpus
from bert_jax.text.encode import Encoder
from bert_jax.text.prepare import prepare
from bert_jax.text.sentencepiece import _parse
from bert_jax.text.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_tokenizer
from bert_jax.train.divergence import TrainingRecord
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.metrics import MetricsWriter
from tests.soak.harness import tries
from tests.support.records import make_records, serialize
from tests.support.texts import write_text

_MAX_ADDED_BYTES = 400 << 20  # by which all examples together may grow the process
_SAMPLE = 12  # examples per target in `make test`

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**30, 1e308, -0.0, float('nan'), float('inf'), '', '../x', '/', '\0'])
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def _key_paths(value: Any, prefix: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(path for key, child in items for path in _key_paths(child, (*prefix, key)))]


@st.composite
def changed_json(draw: Any, document: Any) -> Any:
    """Draws a JSON value with one or two of its parts replaced or removed."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        paths = [path for path in _key_paths(document) if path]
        if not paths:
            return draw(JSON)
        *parents, last = draw(st.sampled_from(paths))
        container = document
        for key in parents:
            container = container[key]
        if draw(st.booleans()):
            container[last] = draw(JSON)
        else:
            del container[last]
    return document


@st.composite
def changed_bytes(draw: Any, content: bytes) -> bytes:
    """Draws bytes with a few of them changed, removed or inserted."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        match draw(st.sampled_from(['set', 'cut', 'insert'])):
            case 'set':
                changed[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 'cut':
                del changed[at : at + draw(st.integers(1, 64))]
            case 'insert':
                changed[at:at] = draw(st.binary(max_size=16))
    return bytes(changed)


def _is_rejected(function: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether a function raised BadInput; any other exception is a failure."""
    try:
        function(*arguments)
    except BadInput as error:
        assert str(error)
        return True
    return False


def _fuzz(strategy: st.SearchStrategy, check: Callable[[Any], Any], count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    given(strategy)(settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None)(check))()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < _MAX_ADDED_BYTES, f'{grown >> 20} MiB'


# --- Targets: each returns a strategy for contents, and a check of one content. ---


def _vocabulary(directory: Path) -> tuple:
    path = directory / 'vocab.txt'
    whole = '\n'.join([*SPECIAL_TOKENS, 'a', '##b', 'cd', '']).encode()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        _is_rejected(lambda: load_tokenizer(path, lowercase=True, strip_accents=None).encode_batch(['ab cd [MASK]']))

    return changed_bytes(whole) | st.binary(max_size=200), check


def _tokenizer_json(directory: Path) -> tuple:
    (directory / 'vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, 'a', '##b', 'cd', '']))
    load_tokenizer(directory / 'vocab.txt', lowercase=True, strip_accents=None).save(directory / 'whole')
    whole, path = (directory / 'whole' / 'tokenizer.json').read_bytes(), directory / 'tokenizer.json'

    def check(content: bytes) -> None:
        path.write_bytes(content)
        _is_rejected(lambda: load_tokenizer(path, lowercase=True, strip_accents=None).encode_batch(['ab cd [MASK]']))

    return changed_bytes(whole) | changed_json(json.loads(whole)).map(_as_bytes), check


def _pipeline(directory: Path) -> tuple:
    """A tokenizer.json of byte-level BPE, with and without its model, and the file that names its special tokens."""
    train_tokenizer(config.Tokenizer(kind='bpe', vocab_size=320), iter(['the quick brown fox'] * 9)).save(directory)
    path, special = directory / 'tokenizer.json', directory / 'special_tokens_map.json'
    whole, names = json.loads(path.read_bytes()), json.loads(special.read_bytes())

    def use() -> None:
        tokenizer = load_tokenizer(directory)
        Encoder(tokenizer).encode('the  fox [MASK]\n\u2581 x\n'.encode())
        [ids] = tokenizer.encode_batch(['the fox [MASK]'])
        tokenizer.continues_word(np.array([[tokenizer.cls_id, *ids]]))

    def check(content: bytes) -> None:
        for name in (path, special):
            path.write_bytes(_as_bytes(whole))
            special.write_bytes(_as_bytes(names))
            name.write_bytes(content)
            _is_rejected(use)

    parts = {name: part for name, part in whole.items() if name != 'model'}

    def with_model(value: Any) -> Any:
        return value | {'model': whole['model']} if isinstance(value, dict) else value

    changed = changed_json(parts).map(with_model)
    return changed.map(_as_bytes) | changed_json(whole).map(_as_bytes) | changed_json(names).map(_as_bytes), check


def _tokenizer_settings(directory: Path) -> tuple:
    (directory / 'vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, 'a', '##b', 'cd', '']))
    settings = {'do_lower_case': True, 'strip_accents': None, 'keep_accents': False}

    def check(content: bytes) -> None:
        for name in ('tokenizer_config.json', 'config.json', 'tokenizer.json'):
            (directory / name).write_bytes(content)
            _is_rejected(lambda: load_tokenizer(directory / 'vocab.txt').encode_batch(['ab cd [MASK]']))
            (directory / name).unlink()

    return changed_bytes(json.dumps(settings).encode()) | changed_json(settings).map(_as_bytes), check


def _sentencepiece_model(directory: Path) -> tuple:
    wanted = config.Tokenizer(kind='sentencepiece', vocab_size=64)
    train_tokenizer(wanted, iter(['the quick brown fox jumps over the lazy dog'] * 20)).save(directory / 'whole')
    proto = _parse((directory / 'whole' / 'sentencepiece.model').read_bytes(), 'model')
    proto.normalizer_spec.precompiled_charsmap = b''  # most of the bytes
    path = directory / 'changed.model'

    def check(content: bytes) -> None:
        path.write_bytes(content)
        _is_rejected(lambda: load_tokenizer(path).encode_batch(['the fox [MASK]', '', '\u2581 x']))

    return changed_bytes(proto.SerializeToString()), check


def _tfrecords(directory: Path) -> tuple:
    path, whole = directory / 'part.tfrecord', serialize(make_records(0, 1)[0][0])

    def checksum(data: bytes) -> bytes:
        value = google_crc32c.value(data)
        return struct.pack('<I', (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    def frame(data: bytes) -> bytes:
        head = struct.pack('<Q', len(data))
        return head + checksum(head) + data + checksum(data)

    def read() -> None:
        with path.open('rb') as file:
            records = [(data, (str(path), offset)) for offset, data in read_frames(file, str(path))]
        if records:
            decode(*map(list, zip(*records, strict=True)))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        _is_rejected(read)

    lengths = st.integers(0, 2**64 - 1).map(lambda n: struct.pack('<Q', n)).map(lambda head: head + checksum(head))
    return changed_bytes(whole).map(frame) | changed_bytes(frame(whole) * 2) | lengths, check


def _safetensors(directory: Path) -> tuple:
    path = directory / 'model.safetensors'
    save_file({'a': np.zeros((3, 4), np.float32), 'b': np.ones(5, np.float16)}, path)
    whole = path.read_bytes()
    size = struct.unpack('<Q', whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        _is_rejected(read_tensors, directory)

    with_header = changed_json(header).map(_as_bytes).map(lambda text: struct.pack('<Q', len(text)) + text + data)
    return with_header | changed_bytes(whole) | st.binary(max_size=40), check


def _index_of_safetensors(directory: Path) -> tuple:
    save_file({'a': np.zeros(3, np.float32)}, directory / 'part.safetensors')
    path = directory / 'model.safetensors.index.json'

    def check(content: Any) -> None:
        path.write_text(json.dumps(content))
        _is_rejected(read_tensors, directory)

    return changed_json({'weight_map': {'a': 'part.safetensors'}, 'metadata': {'total_size': 12}}), check


def _corpus_manifest(directory: Path) -> tuple:
    write_text(directory / 'text.txt', num_documents=8)
    data = config.Data(source=f'text:{directory}/text.txt', corpus=str(directory / 'corpus'), validation_fraction=0.3)
    prepare(data, config.Tokenizer(vocab_size=300), progress=False)
    path = directory / 'corpus' / 'manifest.json'

    def read() -> None:
        corpus = load_corpus(directory / 'corpus')
        for split in (corpus.train, corpus.validation):
            split.unigram_counts(corpus.tokenizer.vocab_size)
            assert split.sentences[-1] == split.num_tokens and len(split.documents)

    def check(content: Any) -> None:
        path.write_text(json.dumps(content))
        _is_rejected(read)

    return changed_json(json.loads(path.read_text())), check


def _run_config(directory: Path) -> tuple:
    path = directory / 'config.json'
    whole = {'config': dataclasses.asdict(config.Config()), 'fingerprint': {'corpus': 'x'}, 'versions': {}}

    def check(content: Any) -> None:
        path.write_text(json.dumps(content))
        _is_rejected(identity.load_config, str(directory))
        _is_rejected(identity.load_fingerprint, str(directory))

    return changed_json(whole), check


def _config_fields(directory: Path) -> tuple:
    phases = [dataclasses.asdict(config.Phase(steps=10, warmup_steps=1)), {'steps': 5, 'warmup_steps': 0}]
    whole = dataclasses.asdict(config.Config()) | {'phases': phases}

    def check(content: Any) -> None:
        if not _is_rejected(config.resolve, content):
            resolved = config.resolve(content)
            assert config.resolve(json.loads(json.dumps(dataclasses.asdict(resolved)))) == resolved

    return changed_json(whole), check


def _checkpoint_manifest(directory: Path) -> tuple:
    directory = directory / 'checkpoints' / '5'
    directory.mkdir(parents=True)
    (directory / 'file').write_bytes(b'12345')
    whole = {'version': 2, 'step': 5, 'part_bytes': 1 << 24, 'files': {'file': {'bytes': 5, 'sha256': ['0' * 64]}}}
    whole['checksum'] = json_digest(whole)
    checkpoints = Checkpoints(str(directory))

    def check(content: bytes) -> None:
        (directory / 'manifest.json').write_bytes(content)
        assert checkpoints.damage(5)  # the checksum in it is wrong, whatever else is

    return changed_json(whole).map(_as_bytes) | changed_bytes(_as_bytes(whole)), check


def _record(directory: Path) -> tuple:
    whole = TrainingRecord(((0, 1, 2),), 1, 2, 3, 0, (1.0, 2.0)).to_json()

    def check(content: Any) -> None:
        _is_rejected(TrainingRecord.from_json, content, 'record.json')

    return changed_json(json.loads(json.dumps(whole))) | JSON, check


def _metrics(directory: Path) -> tuple:
    whole = ''.join(json.dumps({'step': step, 'loss': 1.0}) + '\n' for step in range(1, 5)).encode()

    def check(content: bytes) -> None:
        (directory / 'metrics.jsonl').write_bytes(content)
        MetricsWriter(str(directory), 3).close()
        steps = [json.loads(line)['step'] for line in (directory / 'metrics.jsonl').read_text().splitlines()]
        assert all(step <= 3 for step in steps)

    return changed_bytes(whole), check


def _as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode('utf-8', 'surrogatepass')


TARGETS = [
    _vocabulary,
    _tokenizer_settings,
    _sentencepiece_model,
    _tokenizer_json,
    _pipeline,
    _tfrecords,
    _safetensors,
    _index_of_safetensors,
    _corpus_manifest,
    _run_config,
    _config_fields,
    _checkpoint_manifest,
    _record,
    _metrics,
]


@pytest.mark.parametrize('target', TARGETS, ids=lambda target: target.__name__.strip('_'))
def test_sampled_contents_are_read_or_rejected(target: Callable[[Path], tuple]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        _fuzz(*target(Path(directory)), count=_SAMPLE)


@pytest.mark.soak
@pytest.mark.parametrize('target', TARGETS, ids=lambda target: target.__name__.strip('_'))
def test_any_content_is_read_or_rejected(target: Callable[[Path], tuple]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        _fuzz(*target(Path(directory)), count=tries(3000))
    name = target.__name__.strip('_').replace('_', ' ')
    print(f'| arbitrary content: {name} | {tries(3000)} | read, or rejected with a message | – | – |')
