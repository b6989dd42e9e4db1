"""A run starts from a model that is there, with its weights, sizes and tokenizer; everything else is the run's own."""

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
from bert_jax.text.tokenizer import SPECIAL_TOKENS, SentencePiece, load_tokenizer, train_tokenizer
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
def place(tmp_path_factory) -> Path:
    """A directory with what the guide's commands read: a small model, text, and two new words that are in it."""
    place = tmp_path_factory.mktemp('initial')
    model = place / 'models' / 'bert-base-uncased'
    model.mkdir(parents=True)
    (model / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    rng = np.random.default_rng(0)
    shapes = nnx.state(nnx.eval_shape(lambda: BertForPreTraining(MODEL, len(TOKENS), nnx.Rngs(0))), nnx.Param)
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
    hugging_face.write_model(model, params, MODEL, Vocabulary(len(TOKENS)))
    documents = [[' '.join(rng.choice([*WORDS, *NEW], 8)) + '.' for _ in range(6)] for _ in range(16)]
    (place / 'my').mkdir()
    (place / 'my' / 'text.txt').write_text('\n\n'.join('\n'.join(document) for document in documents) + '\n')
    (place / 'words.txt').write_text('\n'.join(NEW) + '\n')
    (place / 'configs').symlink_to(ROOT / 'configs')
    return place


SMALL = {
    'data.validation_fraction': 0,
    'data.sequence_length': 16,
    'train.steps': 4,
    'train.global_batch_size': 8,
    'train.checkpoint_every': 2,
    'optimizer.warmup_steps': 1,
    'optimizer.peak_learning_rate': 1e-6,  # so low that four steps change next to nothing
}


@pytest.fixture(scope='module')
def commands(one_device, place: Path) -> dict[str, list[str]]:
    """By name, the commands of the guide to continued pretraining, made small; all are run in `place`."""
    guide = (ROOT / 'docs' / 'guides' / 'continue-pretraining.md').read_text()
    found = [line for line in commands_of(guide) if 'runs/fork' not in ' '.join(line)]
    small = [f'--config.{name}={value}' for name, value in SMALL.items()]
    commands = {line[0]: line + small * (line[0] in ('prepare', 'train')) for line in found}
    assert list(commands) == ['prepare', 'train', 'export', 'import']
    for command in commands.values():
        assert run(command, place) == 0
    return commands


@pytest.fixture(scope='module')
def trained(place: Path, commands: dict) -> Path:
    """The workdir of the guide's run."""
    return place / 'runs' / 'domain'


def _tensors(directory: Path, step: int | None = None) -> dict[str, np.ndarray]:
    model = load_pretrained(str(directory), step)
    return tensor_names.to_tensors(nnx.state(model.model, nnx.Param), model.config, model.tokenizer.vocab_size)


WORD, POSITION = 'bert.embeddings.word_embeddings.weight', 'bert.embeddings.position_embeddings.weight'


@pytest.mark.slow
def test_run_starts_from_given_weights_and_new_words_from_their_pieces(place: Path, trained: Path) -> None:
    before, after = _tensors(place / MODEL_NAME), _tensors(trained)
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
        assert recorded[size] == getattr(MODEL, size)  # not those of the config file
    tokenizer = load_pretrained(str(trained)).tokenizer
    assert tokenizer.tokens == TOKENS + NEW
    assert tokenizer.encode_batch(['xyz zyx xyzz']) == [
        [len(TOKENS), len(TOKENS) + 1, len(TOKENS), TOKENS.index('##z')]
    ]


@pytest.mark.slow
def test_the_moments_are_new_and_the_step_is_0(place: Path, commands: dict) -> None:
    resolved = config.resolve(_fields(place))
    point = initialize.pretraining_start(resolved, str(place / 'nowhere'))
    tokenizer = load_tokenizer(place / 'corpora/domain/tokenizer', lowercase=True, strip_accents=False)
    mesh = make_mesh(config.Mesh(fsdp=2, tensor=2), point.config.model, config.Train(), jax.local_devices())
    model, optimizer, train = point.config.model, point.config.optimizer, config.Train(steps=4)
    state = build_program(model, optimizer, train, len(TOKENS) + 2, mesh).init_state(0, point.params(tokenizer))
    assert int(state.step) == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(state.opt_state))
    placed = tensor_names.to_tensors(state.params, point.config.model, len(TOKENS))
    for name, value in _tensors(place / MODEL_NAME).items():  # split over devices, the same numbers
        np.testing.assert_array_equal(placed[name], value)


def _fields(place: Path, **changes: object) -> dict:
    fields = {'init': str(place / MODEL_NAME), 'data': {'sequence_length': 16}}
    return fields | changes


def test_positions_beyond_the_models_repeat_those_that_it_has(place: Path) -> None:
    def resolved(sequence_length: int, max_positions: int) -> config.Config:
        fields = _fields(place, data={'sequence_length': sequence_length}, model={'max_positions': max_positions})
        return initialize.pretraining_start(config.resolve(fields), str(place / 'nowhere')).config

    assert resolved(24, 512).model.max_positions == 24  # it fits: the table stays as it is
    assert resolved(25, 32).model.max_positions == 32
    assert resolved(60, 32).model.max_positions == 60
    model = load_pretrained(str(place / MODEL_NAME))
    before = np.asarray(model.model.bert.embeddings.position[...])
    after = np.asarray(initialize.resize_embeddings(model, model.tokenizer, 60)['bert']['embeddings']['position'][...])
    np.testing.assert_array_equal(after, np.concatenate([before, before, before[:12]]))


def test_every_kind_of_initial_model_is_the_same_model(place: Path, trained: Path, capsys) -> None:
    def origin(init: Path | str) -> dict:
        fields = {'init': str(init), 'data': {'sequence_length': 16}}
        return initialize.pretraining_start(config.resolve(fields), str(place / 'nowhere')).fingerprint

    export = place / 'models' / 'domain'
    assert origin(trained) == origin(f'{trained}@4') == origin(export) != origin(f'{trained}@2')
    assert f'Starting from {export}: 1 layers, hidden size 32, 2 heads, 49 tokens, 24 pos' in capsys.readouterr().err
    for init in (trained, f'{trained}@2', export):
        assert initialize.initial_tokenizer(str(init)).tokens == TOKENS + NEW
    assert origin(place / 'runs' / 'imported') == origin(place / MODEL_NAME)


@pytest.mark.slow
def test_a_run_goes_on_without_its_initial_model(
    place: Path, trained: Path, commands: dict, tmp_path: Path, capsys
) -> None:
    for name in ('configs', 'corpora'):  # all that the command names but the model
        (tmp_path / name).symlink_to(place / name)
    workdir = Path(shutil.copytree(trained, tmp_path / 'runs' / 'domain'))
    shutil.rmtree(workdir / 'checkpoints' / '4')
    assert run(commands['train'], tmp_path) == 0
    told = capsys.readouterr().err
    assert 'from step 2 of 4' in told and 'Starting from' not in told
    expected = _tensors(trained)
    for name, value in _tensors(workdir).items():
        np.testing.assert_array_equal(value, expected[name])
    shutil.rmtree(workdir / 'checkpoints')  # as if it was stopped before it saved anything: now the model is needed
    assert run(commands['train'], tmp_path) == 2
    assert f'{MODEL_NAME}/config.json: does not exist' in capsys.readouterr().err
    _write_other_model(place, tmp_path)
    assert run(commands['train'], tmp_path) == 2
    assert 'other weights than those that this run began with' in capsys.readouterr().err


def _write_other_model(place: Path, target: Path) -> Path:
    other = Path(shutil.copytree(place / MODEL_NAME, target / MODEL_NAME))
    tensors = _tensors(other) | {'cls.seq_relationship.bias': np.ones(2, np.float32)}
    save_file(tensors, other / 'model.safetensors')
    return other


def test_another_initial_model_in_the_same_workdir_is_refused(
    place: Path, trained: Path, commands: dict, tmp_path: Path, capsys
) -> None:
    same = shutil.copytree(place / MODEL_NAME, tmp_path / 'same')
    assert run([*commands['train'], f'--config.init={same}'], place) == 0  # finished; the place does not matter
    other = _write_other_model(place, tmp_path)
    assert run([*commands['train'], f'--config.init={other}'], place) == 2
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
def test_what_a_run_cannot_start_from_is_told(
    place: Path, commands: dict, capsys, changes: list[str], words: str
) -> None:
    if 'corpora/plain' in changes[0]:
        without_words = [flag for flag in commands['prepare'] if 'add_tokens' not in flag]
        assert run([*without_words, '--config.data.corpus=corpora/plain'], place) == 0
    assert run([*commands['train'], *changes, '--workdir=runs/new'], place) == 2
    assert words in capsys.readouterr().err and not (place / 'runs' / 'new').exists()


def test_the_words_of_a_file_are_appended_and_the_rest_is_told(tmp_path: Path, capsys) -> None:
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
def test_words_that_cannot_be_tokens_are_told_by_their_lines(lines: str | bytes | None, words: str, tmp_path: Path):
    (tmp_path / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    tokenizer = load_tokenizer(tmp_path / 'vocab.txt', lowercase=True, strip_accents=True)
    if lines is not None:
        (tmp_path / 'words').write_bytes(lines.encode() if isinstance(lines, str) else lines)
    with pytest.raises(BadInput, match=words):
        add_tokens(tokenizer, str(tmp_path / 'words'))


def test_words_are_added_to_a_wordpiece_vocabulary_that_exists_only(place: Path) -> None:
    settings = config.Tokenizer(kind='sentencepiece', vocab_size=64)
    texts = iter((place / 'my' / 'text.txt').read_text().splitlines())
    sentencepiece = train_tokenizer(settings, texts)
    assert isinstance(sentencepiece, SentencePiece)
    with pytest.raises(BadInput, match='is a sentencepiece model'):
        add_tokens(sentencepiece, str(place / 'words.txt'))
    with pytest.raises(BadInput, match='there is no vocabulary to add to'):
        config.resolve({'tokenizer': {'add_tokens': 'words.txt'}})
