"""An export opens in `transformers`, computes the same as its run, describes itself, and is written atomically."""

import dataclasses
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax import config, load_pretrained
from bert_jax.__main__ import main
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.files import files_below
from bert_jax.model.bert import BertForPreTraining
from bert_jax.pretrain import pretrain
from bert_jax.pretrained import export as export_module
from bert_jax.pretrained import hugging_face, sentences_proof, tensor_names
from bert_jax.pretrained.export import check_output, export, publish
from bert_jax.pretrained.load import Pretrained, _encode
from bert_jax.pretrained.sentences import FILES as SENTENCE_FILES
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.pretrained.vectors import TextEncoder
from bert_jax.runtime.mesh import make_mesh
from bert_jax.text import prepare
from bert_jax.train.program import build_program
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from tests.support.documents import code_blocks, commands_of, run_snippet
from tests.support.processes import ROOT
from tests.support.texts import WORDS, write_text

pytestmark = pytest.mark.compiles


def _settings(directory: Path, kind: str, pairing: str) -> config.Config:
    return config.resolve(
        {
            'data': {
                'source': f'text:{directory}/text.txt',
                'corpus': str(directory / 'corpus'),
                'validation_fraction': 0.0,
                'sequence_length': 32,
                'pairing': pairing,
            },
            'tokenizer': {'kind': kind, 'vocab_size': 500 if kind == 'wordpiece' else 120},
            'model': {
                'num_layers': 2,
                'hidden_size': 32,
                'num_heads': 2,
                'intermediate_size': 64,
                'max_positions': 64,
                'dtype': 'float32',
            },
            'train': {'steps': 2, 'global_batch_size': 16, 'evaluate_every': 0},
            'optimizer': {'warmup_steps': 0, 'peak_learning_rate': 1e-2},
            'card': {
                'name': 'Random words',
                'training_data': 'Words in a random order.',
                'license': 'apache-2.0',
                'language': 'en, de',
                'datasets': 'a: "b"',
            },
        }
    )


def _trained(directory: Path, kind: str, pairing: str) -> Path:
    """Writes run/, a workdir as `train` leaves it with random parameters and biases, and export/."""
    write_text(directory / 'text.txt', num_documents=20)
    settings = _settings(directory, kind, pairing)
    prepare.prepare(settings.data, settings.tokenizer)
    found, workdir = open_streams(settings), directory / 'run'
    identity.write(str(workdir), settings, found.tokenizer, identity.fingerprint(settings, found))
    evaluation = {
        'step': 2,
        'mlm_loss': 3.25,
        'unigram_entropy': 5.0,
        'nsp_accuracy': 0.75,
        'masked_word_nats_per_character': 1.446,
        'windows': 512,
        'unknown_characters': 0.0,
        'pseudo_perplexity': 63.7,
        'unigram_perplexity': 148.4,
    }
    (workdir / 'evaluation.json').write_text(json.dumps(evaluation))
    shapes = nnx.eval_shape(lambda: BertForPreTraining(settings.model, found.tokenizer.vocab_size, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), nnx.state(shapes, nnx.Param)
    )
    mesh = make_mesh(config.Mesh(), settings.model, settings.train, jax.devices()[:1])
    vocab_size = found.tokenizer.vocab_size
    program = build_program(settings.model, settings.optimizer, settings.train, vocab_size, mesh)
    state = program.init_state(0, params)
    checkpoints = Checkpoints(str(workdir))
    checkpoints.save(state._replace(step=jnp.asarray(2, jnp.int32)))
    checkpoints.close()
    export(str(workdir), str(directory / 'export'))
    return directory


@pytest.fixture(scope='module')
def pairs(tmp_path_factory) -> Path:
    """Holds run/ and export/ of a WordPiece model trained on pairs."""
    return _trained(tmp_path_factory.mktemp('pairs'), 'wordpiece', 'nsp')


@pytest.fixture(scope='module')
def single(tmp_path_factory) -> Path:
    """Holds run/ and export/ of a SentencePiece model trained on single texts."""
    return _trained(tmp_path_factory.mktemp('single'), 'sentencepiece', 'none')


@pytest.fixture(params=['pairs', pytest.param('single', marks=pytest.mark.slow)])
def directory(request) -> Path:
    return request.getfixturevalue(request.param)


def _reference(directory: Path, name: str):
    transformers = pytest.importorskip('transformers')
    return getattr(transformers, name).from_pretrained(directory)


def test_export_opens_in_transformers_and_fills_masks_equally(directory: Path) -> None:
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    text = f'{WORDS[0]} [MASK] {WORDS[1]}, [MASK].'
    ours = load_pretrained(str(directory / 'export')).fill_mask(text, top_k=3)
    pretrained = load_pretrained(str(directory / 'run'))
    from_run = pretrained.fill_mask(text, top_k=3)
    [everything, *_] = pretrained.fill_mask(text, top_k=100_000)  # more than the vocabulary has
    assert len(everything) == pretrained.tokenizer.vocab_size
    pipeline = transformers.pipeline('fill-mask', model=str(directory / 'export'), device='cpu')
    for slot, same, theirs in zip(ours, from_run, pipeline(text, top_k=3), strict=True):
        assert [filler.token for filler in slot] == [filler.token for filler in same]
        assert [filler.token for filler in slot] == [
            pipeline.tokenizer.convert_ids_to_tokens(filler['token']) for filler in theirs
        ]
        np.testing.assert_allclose([filler.score for filler in slot], [filler['score'] for filler in theirs], atol=1e-5)
    tokenizer = _reference(directory / 'export', 'AutoTokenizer')
    encoded = tokenizer(text, 'and so on', return_tensors='pt')
    with torch.no_grad():
        masked = _reference(directory / 'export', 'AutoModelForMaskedLM')(**encoded).logits
        both = _reference(directory / 'export', 'AutoModelForPreTraining')(**encoded).prediction_logits
        hidden = _reference(directory / 'export', 'AutoModel')(**encoded).last_hidden_state
    np.testing.assert_allclose(masked, both, atol=1e-5)
    assert hidden.shape[:2] == masked.shape[:2]
    assert tokenizer.model_max_length == 32  # of the model's 64 positions, 32 were trained


def test_proof_holds_the_checksums_of_all_files(directory: Path) -> None:
    pytest.importorskip('torch')
    vocabulary = 'vocab.txt' if directory.name.startswith('pairs') else 'sentencepiece.model'
    files = {'README.md', 'config.json', 'model.safetensors', 'proof.json', 'special_tokens_map.json'}
    files |= {'tokenizer.json', 'tokenizer_config.json', vocabulary, *SENTENCE_FILES}
    found = {name: path.read_bytes() for name, path in files_below(directory / 'export').items()}
    assert found.keys() == files
    proof = json.loads(found.pop('proof.json'))
    assert proof['sha256'] == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
    assert proof['largest_difference'] <= proof['tolerance'] and proof['step'] == 2
    rows, vocab_size = np.array(proof['input_ids']), load_pretrained(str(directory / 'export')).tokenizer.vocab_size
    both = directory.name.startswith('pairs')
    assert proof['logits_compared'] == rows.size * vocab_size + (2 * len(rows) if both else 0)
    assert proof['compared_with'] == ('transformers BertForPreTraining' if both else 'transformers BertForMaskedLM')
    assert proof['token_ids_compared'] > rows.size / 2
    if importlib.util.find_spec('sentence_transformers'):
        assert proof['vectors_compared_with'] == 'sentence-transformers'
        assert proof['vectors_compared'] == 8 and proof['largest_difference_of_vectors'] < 1e-5


def test_untrained_heads_are_omitted_and_the_card_says_so(single: Path, pairs: Path) -> None:
    from safetensors import safe_open

    with safe_open(single / 'export' / 'model.safetensors', 'numpy') as file:
        names = set(file.keys())
    with safe_open(pairs / 'export' / 'model.safetensors', 'numpy') as file:
        left_out = set(file.keys()) - names
    assert {name.rpartition('.')[0] for name in left_out} == {'bert.pooler.dense', 'cls.seq_relationship'}
    assert json.loads((single / 'export' / 'config.json').read_text())['architectures'] == ['BertForMaskedLM']
    card = (single / 'export' / 'README.md').read_text()
    assert 'The pooler and the next-sentence head are untrained and were not exported' in card
    assert 'trained on next-sentence prediction' in (pairs / 'export' / 'README.md').read_text()


def test_front_matter_holds_the_card_settings_and_the_metrics(pairs: Path) -> None:
    yaml = pytest.importorskip('yaml')
    front = yaml.safe_load((pairs / 'export' / 'README.md').read_text().split('---\n')[1])
    [index] = front.pop('model-index')
    assert front == {
        'library_name': 'transformers',
        'pipeline_tag': 'fill-mask',
        'mask_token': '[MASK]',
        'tags': ['bert', 'sentence-transformers'],
        'license': 'apache-2.0',
        'language': ['en', 'de'],
        'datasets': ['a: "b"'],
    }
    assert index['name'] == 'Random words'
    values = {metric['type']: metric['value'] for metric in index['results'][0]['metrics']}
    assert values['mlm_loss'] == 3.25 and values['pseudo_perplexity'] == 63.7


def test_model_hub_accepts_the_card(pairs: Path) -> None:
    hub = pytest.importorskip('huggingface_hub')
    card = hub.ModelCard((pairs / 'export' / 'README.md').read_text())
    assert card.data.model_name == 'Random words'
    assert {result.metric_type for result in card.data.eval_results} >= {'mlm_loss', 'nsp_accuracy'}


def test_card_holds_facts_with_units_and_no_paths(pairs: Path, single: Path) -> None:
    text = (pairs / 'export' / 'README.md').read_text()
    manifest = json.loads((pairs / 'corpus' / 'manifest.json').read_text())
    for fact in (
        '# Random words\n',
        '## Intended use',
        '## Limitations',
        '## Training data\n\nWords in a random order.',
        '| Layers | 2 |',
        '| Steps | 2 of 2 planned |',
        '| Batch | 16 rows of 32 tokens |',
        '15% of the tokens',
        f'| Tokens | {manifest["splits"]["train"]["tokens"]:,} |',
        '| Metric | Value | Baseline |',
        '| Masked-LM loss | 3.250 nats per masked token | 5.000 nats per masked token (guessing by token frequency) |',
        '| Next-sentence accuracy | 75.0% | 50.0% (chance) |',
        '| Masked words, 512 text windows | 1.446 nats per character | – |',
        '| Unknown characters in masked words | 0.00% | – |',
        '| Pseudo-perplexity per token | 63.7 | 148.4 (guessing by token frequency) |',
        '## Citation',
    ):
        assert fact in text
    assert 'Next-sentence' not in (single / 'export' / 'README.md').read_text()
    assert str(pairs) not in text  # paths are private


def test_unset_card_fields_are_omitted(pairs: Path, tmp_path: Path) -> None:
    proof = export(str(pairs / 'run'), str(tmp_path / 'bare'), card=config.Card())
    assert proof['step'] == 2
    _, front, body = (tmp_path / 'bare' / 'README.md').read_text().split('---\n', 2)
    assert not any(f'{key}:' in front for key in ('license', 'language', 'datasets'))
    assert '# BERT encoder, ' in body and '# export' not in body and '# bare' not in body
    assert 'Its sources were not described.' in body


def test_snippet_of_the_card_runs(directory: Path) -> None:
    pytest.importorskip('transformers')
    run_snippet(directory / 'export')


def test_changed_card_belongs_to_the_same_run(pairs: Path) -> None:
    settings = dataclasses.replace(_settings(pairs, 'wordpiece', 'nsp'), card=config.Card(license='mit'))
    assert pretrain(settings, str(pairs / 'run')).finished
    with pytest.raises(BadInput, match='config.card.license'):
        config.resolve({'card': {'license': 'mit\nlanguage: en'}})


def test_without_torch_the_proof_compares_files_read_back(directory: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    proof = export(str(directory / 'run'), str(tmp_path / 'export'))
    assert proof['compared_with'] == 'the files read back by bert_jax' and proof['largest_difference'] <= 1e-6
    assert proof['vectors_compared_with'] == 'the settings read back by bert_jax'


@pytest.mark.parametrize('by_torch', [True, False])
def test_wrong_export_is_never_written(pairs: Path, tmp_path: Path, monkeypatch, by_torch: bool) -> None:
    if not by_torch:
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    right = tensor_names.to_tensors

    def wrong(*arguments) -> dict[str, np.ndarray]:
        tensors = right(*arguments)
        name = 'bert.encoder.layer.1.output.dense.weight'
        return tensors | {name: tensors[name][::-1].copy()}

    monkeypatch.setattr(hugging_face, 'to_tensors', wrong)
    with pytest.raises(RuntimeError, match='logits differ'):
        export(str(pairs / 'run'), str(tmp_path / 'export'))
    assert not list(tmp_path.iterdir())


def test_wrong_tokenizer_is_never_written(pairs: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip('transformers')
    write_model = hugging_face.write_model

    def spoil(directory: Path, *arguments: Any, **named: Any) -> None:
        write_model(directory, *arguments, **named)
        monkeypatch.setattr(export_module, '_hugging_face_ids', lambda directory, texts: [[1]] * len(texts))

    monkeypatch.setattr(hugging_face, 'write_model', spoil)
    with pytest.raises(RuntimeError, match='tokenizer returns other ids'):
        export(str(pairs / 'run'), str(tmp_path / 'export'))
    assert not list(tmp_path.iterdir())


def test_wrong_pooling_is_never_written(pairs: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip('sentence_transformers')

    def encoder(trained: Pretrained, settings: SentenceSettings) -> TextEncoder:
        return TextEncoder(trained, dataclasses.replace(settings, modes=('cls',)))

    monkeypatch.setattr(sentences_proof, 'TextEncoder', encoder)
    with pytest.raises(RuntimeError, match='the vectors of sentence-transformers differ'):
        export(str(pairs / 'run'), str(tmp_path / 'export'))
    assert not list(tmp_path.iterdir())


def _publish(output: Path, files: dict[str, str]) -> None:
    """Publishes an export of a few text files."""

    def fill(directory: Path) -> dict[str, object]:
        for name, text in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text)
        return {'sha256': {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}}

    publish(check_output(str(output)), fill)


def test_second_export_replaces_only_exported_files(tmp_path: Path) -> None:
    output = tmp_path / 'export'
    _publish(output, {'a': 'old', 'vocab.txt': 'old'})
    (output / '.git').mkdir()
    for name in ('NOTES.txt', '.git/config'):
        (output / name).write_text('mine')
    _publish(output, {'a': 'new', 'b': 'new'})
    found = {path.relative_to(output).as_posix(): path.read_text() for path in output.rglob('*') if path.is_file()}
    proof = found.pop('proof.json')
    assert found == {'a': 'new', 'b': 'new', 'NOTES.txt': 'mine', '.git/config': 'mine'}
    assert json.loads(proof)['sha256'].keys() == {'a', 'b'} and os.listdir(tmp_path) == ['export']
    for name, words in (('a', 'was changed since it was exported'), ('c', 'was not written by export')):
        (output / name).write_text('mine')
        with pytest.raises(BadInput, match=words):
            _publish(output, {'a': 'newer', 'c': 'newer'})
        assert (output / name).read_text() == 'mine' and (output / 'b').read_text() == 'new'
        (output / 'a').write_text('new')
    (output / 'c').unlink()
    _publish(output, {'1_Pooling/config.json': 'old'})
    _publish(output, {'1_Pooling/config.json': 'new'})
    assert (output / '1_Pooling' / 'config.json').read_text() == 'new'
    (output / '1_Pooling' / 'notes').write_text('mine')
    with pytest.raises(BadInput, match='1_Pooling/notes: was not written by export'):
        _publish(output, {'1_Pooling/config.json': 'newer'})
    (output / 'proof.json').write_text('{')
    with pytest.raises(BadInput, match='proof.json: is damaged'):
        check_output(str(output))


def test_export_through_a_link_goes_to_its_target(tmp_path: Path) -> None:
    for name in ('dangling', 'again'):
        if not (tmp_path / 'link').is_symlink():
            (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'export')
        _publish(tmp_path / 'link', {'a': name})
        assert (tmp_path / 'link').is_symlink() and (tmp_path / 'disk' / 'export' / 'a').read_text() == name
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    with pytest.raises((BadInput, OSError)):
        _publish(tmp_path / 'loop', {'a': 'x'})
    with pytest.raises(BadInput, match='mount point'):
        check_output('/')


# --- load_pretrained, embed. ---

TEXTS = ['', f'{WORDS[3]}', ' '.join(WORDS[:9]), f'{WORDS[5]} [MASK] {WORDS[7]}', ' '.join(WORDS[:200]), 'x y z', '']


def test_vectors_of_run_and_export_match_transformers(directory: Path) -> None:
    torch = pytest.importorskip('torch')
    encoded, same = (load_pretrained(str(directory / where)).encode(TEXTS) for where in ('export', 'run'))
    np.testing.assert_array_equal(encoded.mean_pooled, same.mean_pooled)
    tokenizer, model = (_reference(directory / 'export', name) for name in ('AutoTokenizer', 'AutoModel'))
    for text, ids, vectors, mean in zip(
        TEXTS, encoded.input_ids, encoded.token_vectors, encoded.mean_pooled, strict=True
    ):
        theirs = tokenizer(text, return_tensors='pt', truncation=True, split_special_tokens=True)
        assert ids == theirs['input_ids'][0].tolist()
        with torch.no_grad():
            hidden = model(**theirs).last_hidden_state[0].numpy()
        np.testing.assert_allclose(vectors, hidden, atol=1e-5 * np.abs(hidden).max())
        np.testing.assert_allclose(mean, hidden.mean(0), atol=1e-5 * np.abs(hidden).max())
    assert encoded.num_truncated == 1 and len(encoded.input_ids[4]) == 32


def test_many_texts_compile_few_programs_in_their_order(pairs: Path) -> None:
    pretrained = load_pretrained(str(pairs / 'run'))
    rng = np.random.default_rng(0)
    texts = [' '.join(rng.choice(WORDS, rng.integers(0, 28))) for _ in range(300)]
    before = _encode._cache_size()
    together = pretrained.encode(texts)
    assert _encode._cache_size() - before <= 4
    alone = [pretrained.encode([text]).mean_pooled[0] for text in texts[:10]]
    np.testing.assert_allclose(together.mean_pooled[:10], alone, atol=1e-5)
    assert _encode._cache_size() - before <= 7
    means, num_truncated = pretrained.mean_pooled(texts)
    np.testing.assert_array_equal(means, together.mean_pooled)
    assert num_truncated == together.num_truncated


def test_texts_that_cannot_be_encoded_are_rejected(pairs: Path) -> None:
    pretrained = load_pretrained(str(pairs / 'export'))
    with pytest.raises(BadInput, match='text 4: has .* tokens\n.*at most 32, which the model was trained on'):
        pretrained.encode(TEXTS, truncate=False)
    with pytest.raises(BadInput, match='a list of strings'):
        pretrained.encode('one text')
    assert pretrained.encode([]).mean_pooled.shape == (0, 32)


def test_embed_writes_one_row_per_line(pairs: Path, tmp_path: Path, capsys) -> None:
    lines = ['waa', '', ' '.join(WORDS[:200]), 'ü wab\r', 'last']
    (tmp_path / 'in.txt').write_bytes('\n'.join(lines).encode())
    output = tmp_path / 'new' / 'out.npy'
    arguments = ['embed', f'--model={pairs}/run', f'--input={tmp_path}/in.txt', f'--output={output}', '--json']
    assert main(['bert_jax', *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found['lines'], found['hidden_size'], found['truncated'], found['output']) == (5, 32, 1, str(output))
    expected = load_pretrained(str(pairs / 'run')).encode(lines).mean_pooled
    np.testing.assert_allclose(np.load(output), expected, atol=1e-6)
    assert [path.name for path in output.parent.iterdir()] == ['out.npy']
    (tmp_path / 'in.txt').write_bytes(b'')
    assert main(['bert_jax', *arguments]) == 0
    assert np.load(output).shape == (0, 32)
    (tmp_path / 'in.txt').write_bytes(b'waa \xff\n\xef\xbf\xbd\n')
    assert main(['bert_jax', *arguments]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['invalid_utf8_replaced'] == 1
    expected = load_pretrained(str(pairs / 'run')).encode(['waa \ufffd', '\ufffd']).mean_pooled
    np.testing.assert_allclose(np.load(output), expected, atol=1e-6)


@pytest.mark.parametrize(
    'content, output, words',
    [
        (b'a\n', 'out.txt', '--output=NAME.npy'),
        (None, 'out.npy', 'is not a file'),
    ],
)
def test_embed_with_bad_input_writes_nothing(
    pairs: Path, tmp_path: Path, capsys, content, output: str, words: str
) -> None:
    if content is not None:
        (tmp_path / 'in.txt').write_bytes(content)
    arguments = [f'--model={pairs}/run', f'--input={tmp_path}/in.txt', f'--output={tmp_path}/{output}']
    assert main(['bert_jax', 'embed', *arguments]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['in.txt'] * (content is not None)


def test_guide_to_using_the_model_works(pairs: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip('transformers')
    guide = (ROOT / 'docs' / 'guides' / 'use-the-model.md').read_text()
    ((_, code),) = code_blocks(guide, 'python')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs' / 'mine').symlink_to(pairs / 'run')
    (tmp_path / 'lines.txt').write_text('waa wab.\nwac\n')
    found = commands_of(guide)
    assert [arguments[0] for arguments in found] == ['export', 'fill-mask', 'embed']
    for arguments in found:
        assert main(['bert_jax', *arguments]) == 0, capsys.readouterr().err
    assert np.load('vectors.npy').shape == (2, 32)
    exec(compile(code, 'use-the-model.md', 'exec'), {})
