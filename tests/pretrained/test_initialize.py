"""A run that starts from an initial model takes over its weights, sizes and tokenizer, and nothing else."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.bert import BertForPreTraining
from bert_jax.pretrained import hugging_face, initialize, tensor_names
from bert_jax.pretrained.load import load_pretrained
from bert_jax.runtime.mesh import make_mesh
from bert_jax.text.added_tokens import add_tokens
from bert_jax.text.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_tokenizer
from bert_jax.train.program import build_program
from tests.support.commands import run
from tests.support.documents import commands_of
from tests.support.models import Vocabulary
from tests.support.processes import ROOT

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]
MODEL = config.Bert(num_layers=1, hidden_size=32, num_heads=2, intermediate_size=48, max_positions=24)
WORDS = [f'{a}{b}' for a in 'abcde' for b in 'abcde']
TOKENS = [*SPECIAL_TOKENS, '.', *'abcdexyz', *(f'##{c}' for c in 'abcdexyz'), *WORDS]
MODEL_NAME = 'models/bert-base-uncased'
NEW = ['xyz', 'zyx']


@pytest.fixture(scope='module')
def directory(tmp_path_factory) -> Path:
    """Writes what the guide's commands read: a small model, text, and two new words that occur in it."""
    directory = tmp_path_factory.mktemp('initial')
    model = directory / 'models' / 'bert-base-uncased'
    model.mkdir(parents=True)
    (model / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    rng = np.random.default_rng(0)
    shapes = nnx.state(nnx.eval_shape(lambda: BertForPreTraining(MODEL, len(TOKENS), nnx.Rngs(0))), nnx.Param)
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
    hugging_face.write_model(model, params, MODEL, Vocabulary(len(TOKENS)))
    documents = [[' '.join(rng.choice([*WORDS, *NEW], 8)) + '.' for _ in range(6)] for _ in range(16)]
    (directory / 'my').mkdir()
    (directory / 'my' / 'text.txt').write_text('\n\n'.join('\n'.join(document) for document in documents) + '\n')
    (directory / 'words.txt').write_text('\n'.join(NEW) + '\n')
    (directory / 'configs').symlink_to(ROOT / 'configs')
    return directory


SMALL = {
    'data.validation_fraction': 0,
    'data.sequence_length': 16,
    'train.steps': 4,
    'train.global_batch_size': 8,
    'train.checkpoint_every': 2,
    'optimizer.warmup_steps': 1,
    'optimizer.peak_learning_rate': 1e-6,  # so low that four steps hardly change the weights
}


@pytest.fixture(scope='module')
def commands(one_device, directory: Path) -> dict[str, list[str]]:
    """Runs small versions of the commands of the guide to continued pretraining; returns them by name."""
    guide = (ROOT / 'docs' / 'guides' / 'continue-pretraining.md').read_text()
    others = ('runs/fork', 'init_larger')
    found = [line for line in commands_of(guide) if not any(part in ' '.join(line) for part in others)]
    small = [f'--config.{name}={value}' for name, value in SMALL.items()]
    commands = {line[0]: line + small * (line[0] in ('prepare', 'train')) for line in found}
    assert list(commands) == ['prepare', 'train', 'export', 'import']
    for command in commands.values():
        assert run(command, directory) == 0
    return commands


@pytest.fixture(scope='module')
def trained(directory: Path, commands: dict) -> Path:
    """Returns the workdir of the guide's run."""
    return directory / 'runs' / 'domain'


def _tensors(directory: Path, step: int | None = None) -> dict[str, np.ndarray]:
    model = load_pretrained(str(directory), step)
    return tensor_names.to_tensors(nnx.state(model.model, nnx.Param), model.config, model.tokenizer.vocab_size)


WORD, POSITION = 'bert.embeddings.word_embeddings.weight', 'bert.embeddings.position_embeddings.weight'


@pytest.mark.slow
def test_run_starts_from_given_weights_and_averaged_new_words(directory: Path, trained: Path) -> None:
    before, after = _tensors(directory / MODEL_NAME), _tensors(trained)
    for name in (WORD, 'cls.predictions.bias'):
        x, y, z = (before[name][TOKENS.index(piece)] for piece in ('x', '##y', '##z'))
        before[name] = np.concatenate([before[name], [(x + y + z) / 3]])
        x, y, z = (before[name][TOKENS.index(piece)] for piece in ('##x', '##y', 'z'))
        before[name] = np.concatenate([before[name], [(z + y + x) / 3]])
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-5, err_msg=name)  # four steps of at most 1e-6
    assert any((after[name] != before[name]).any() for name in after)
    recorded = json.loads((trained / 'config.json').read_text())['config']['model']
    for size in ('num_layers', 'hidden_size', 'num_heads', 'intermediate_size', 'max_positions'):
        assert recorded[size] == getattr(MODEL, size)  # not the sizes of the config file
    tokenizer = load_pretrained(str(trained)).tokenizer
    assert tokenizer.tokens == TOKENS + NEW
    assert tokenizer.encode_batch(['xyz zyx xyzz']) == [
        [len(TOKENS), len(TOKENS) + 1, len(TOKENS), TOKENS.index('##z')]
    ]


@pytest.mark.slow
def test_run_starts_at_step_0_with_zero_moments(directory: Path, commands: dict) -> None:
    resolved = config.resolve(_fields(directory))
    point = initialize.pretraining_start(resolved, str(directory / 'nowhere'))
    tokenizer = load_tokenizer(directory / 'corpora/domain/tokenizer', lowercase=True, strip_accents=False)
    mesh = make_mesh(config.Mesh(fsdp=2, tensor=2), point.config.model, config.Train(), jax.local_devices())
    model, optimizer, train = point.config.model, point.config.optimizer, config.Train(steps=4)
    state = build_program(model, optimizer, train, len(TOKENS) + 2, mesh).init_state(0, point.params(tokenizer))
    assert int(state.step) == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(state.opt_state))
    placed = tensor_names.to_tensors(state.params, point.config.model, len(TOKENS))
    for name, value in _tensors(directory / MODEL_NAME).items():  # split over devices
        np.testing.assert_array_equal(placed[name], value)


def _fields(directory: Path, **changes: object) -> dict:
    fields = {'init': str(directory / MODEL_NAME), 'data': {'sequence_length': 16}}
    return fields | changes


def test_additional_positions_repeat_those_of_the_model(directory: Path) -> None:
    def resolved(sequence_length: int, max_positions: int) -> config.Config:
        fields = _fields(directory, data={'sequence_length': sequence_length}, model={'max_positions': max_positions})
        return initialize.pretraining_start(config.resolve(fields), str(directory / 'nowhere')).config

    assert resolved(24, 512).model.max_positions == 24  # long enough: unchanged
    assert resolved(25, 32).model.max_positions == 32
    assert resolved(60, 32).model.max_positions == 60
    model = load_pretrained(str(directory / MODEL_NAME))
    before = np.asarray(model.model.bert.embeddings.position[...])
    after = np.asarray(initialize.resize_embeddings(model, model.tokenizer, 60)['bert']['embeddings']['position'][...])
    np.testing.assert_array_equal(after, np.concatenate([before, before, before[:12]]))


def test_workdir_and_export_are_the_same_initial_model(directory: Path, trained: Path, capsys) -> None:
    def origin(init: Path | str) -> dict:
        fields = {'init': str(init), 'data': {'sequence_length': 16}}
        return initialize.pretraining_start(config.resolve(fields), str(directory / 'nowhere')).fingerprint

    export = directory / 'models' / 'domain'
    assert origin(trained) == origin(f'{trained}@4') == origin(export) != origin(f'{trained}@2')
    assert f'Starting from {export}: 1 layers, hidden size 32, 2 heads, 49 tokens, 24 pos' in capsys.readouterr().err
    for init in (trained, f'{trained}@2', export):
        assert initialize.initial_tokenizer(str(init)).tokens == TOKENS + NEW
    assert origin(directory / 'runs' / 'imported') == origin(directory / MODEL_NAME)


@pytest.mark.slow
def test_run_resumes_without_its_initial_model(
    directory: Path, trained: Path, commands: dict, tmp_path: Path, capsys
) -> None:
    for name in ('configs', 'corpora'):  # everything the command names except the model
        (tmp_path / name).symlink_to(directory / name)
    workdir = Path(shutil.copytree(trained, tmp_path / 'runs' / 'domain'))
    shutil.rmtree(workdir / 'checkpoints' / '4')
    assert run(commands['train'], tmp_path) == 0
    printed = capsys.readouterr().err
    assert 'from step 2 of 4' in printed and 'Starting from' not in printed
    expected = _tensors(trained)
    for name, value in _tensors(workdir).items():
        np.testing.assert_array_equal(value, expected[name])
    shutil.rmtree(workdir / 'checkpoints')  # as if stopped before the first save: the model is needed again
    assert run(commands['train'], tmp_path) == 2
    assert f'{MODEL_NAME}/config.json: does not exist' in capsys.readouterr().err
    _write_other_model(directory, tmp_path)
    assert run(commands['train'], tmp_path) == 2
    assert 'other weights than those that this run began with' in capsys.readouterr().err


def _write_other_model(directory: Path, target: Path) -> Path:
    other = Path(shutil.copytree(directory / MODEL_NAME, target / MODEL_NAME))
    tensors = _tensors(other) | {'cls.seq_relationship.bias': np.ones(2, np.float32)}
    save_file(tensors, other / 'model.safetensors')
    return other


def test_another_initial_model_needs_another_workdir(
    directory: Path, trained: Path, commands: dict, tmp_path: Path, capsys
) -> None:
    same = shutil.copytree(directory / MODEL_NAME, tmp_path / 'same')
    # The run has finished, and the path of the model does not matter.
    assert run([*commands['train'], f'--config.init={same}'], directory) == 0
    other = _write_other_model(directory, tmp_path)
    assert run([*commands['train'], f'--config.init={other}'], directory) == 2
    assert 'holds another run: init (' in capsys.readouterr().err


@pytest.mark.parametrize(
    'changes, words',
    [
        (['--config.init=no/such'], 'no/such/config.json: does not exist'),
        (['--config.init=runs/domain@3'], 'holds no checkpoint of step 3'),
        (
            ['--config.data.corpus=corpora/plain', '--config.init=runs/domain'],
            'was made with another tokenizer (47 tokens) than that of the initial model (49 tokens)',
        ),
    ],
)
def test_unusable_initial_model_is_rejected(
    directory: Path, commands: dict, capsys, changes: list[str], words: str
) -> None:
    if 'corpora/plain' in changes[0]:
        without_words = [flag for flag in commands['prepare'] if 'add_tokens' not in flag]
        assert run([*without_words, '--config.data.corpus=corpora/plain'], directory) == 0
    assert run([*commands['train'], *changes, '--workdir=runs/new'], directory) == 2
    assert words in capsys.readouterr().err and not (directory / 'runs' / 'new').exists()


def test_new_words_are_appended_and_skipped_lines_reported(tmp_path: Path, capsys) -> None:
    (tmp_path / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    tokenizer = load_tokenizer(tmp_path / 'vocab.txt', lowercase=True, strip_accents=True)
    (tmp_path / 'words').write_text('xyz\n\nXyz\nab\nzéz\n')
    extended = add_tokens(tokenizer, str(tmp_path / 'words'))
    assert extended.tokens == [*TOKENS, 'xyz', 'zez']
    assert (
        'added 2 tokens to the 47 of the vocabulary; skipped lines: 1 blank, 1 repeated, 1 already in the vocabulary'
        in capsys.readouterr().err
    )
    text = ['ab xyzx abxyz ZÉZ']
    old, new = tokenizer.encode_batch(text)[0], extended.encode_batch(text)[0]
    assert [extended.tokens[i] for i in new] == ['ab', 'xyz', '##x', 'ab', '##x', '##y', '##z', 'zez']
    assert old[0] == new[0]
    extended.save(tmp_path / 'saved')
    assert load_tokenizer(tmp_path / 'saved', lowercase=True, strip_accents=None).hash == extended.hash


@pytest.mark.parametrize(
    'lines, words',
    [
        ('xyz\nx y\nxyz-zyx\n##xyz\n', 'lines 2, 3, 4 can never be one token'),
        ('ab\n\n', 'holds no new word'),
        (b'\xff\xfe\n', 'cannot be read'),
        (None, 'cannot be read'),
    ],
)
def test_words_that_cannot_be_tokens_are_reported_by_line(lines: str | bytes | None, words: str, tmp_path: Path):
    (tmp_path / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    tokenizer = load_tokenizer(tmp_path / 'vocab.txt', lowercase=True, strip_accents=True)
    if lines is not None:
        (tmp_path / 'words').write_bytes(lines.encode() if isinstance(lines, str) else lines)
    with pytest.raises(BadInput, match=words):
        add_tokens(tokenizer, str(tmp_path / 'words'))


def test_words_extend_a_sentencepiece_model_and_change_little_else(tmp_path: Path) -> None:
    text = 'the words of a text are split into subwords and words again'
    settings = config.Tokenizer(kind='sentencepiece', vocab_size=64)
    tokenizer = train_tokenizer(settings, iter([text] * 40))
    (tmp_path / 'words').write_text('Text\nzebra\n')
    extended = add_tokens(tokenizer, str(tmp_path / 'words'))
    new = extended.tokens[tokenizer.vocab_size :]
    assert extended.tokens[: tokenizer.vocab_size] == tokenizer.tokens and new[-1] == '▁zebra'
    ids = dict(zip(text.split(), extended.encode_batch(text.split()), strict=True))
    assert all(len(row) == 1 for row in [ids['text'], *extended.encode_batch(['zebra', 'TEXT'])])
    assert all(row == tokenizer.encode_batch([word])[0] for word, row in ids.items() if f'▁{word}' not in new)
    extended.save(tmp_path / 'saved')
    assert load_tokenizer(tmp_path / 'saved').hash == extended.hash != tokenizer.hash


def test_words_are_added_only_to_an_existing_vocabulary() -> None:
    with pytest.raises(BadInput, match='there is no vocabulary to add to'):
        config.resolve({'tokenizer': {'add_tokens': 'words.txt'}})
