"""Example sentences are filled in during training as `fill_mask` fills them, on any mesh."""

import dataclasses
from pathlib import Path

import jax
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.evaluation.fill_in import Examples
from bert_jax.model.bert import BertForPreTraining
from bert_jax.pretrained.load import Pretrained
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.program import build_program
from bert_jax.train.state import distribute
from tests.support.models import MODEL, TOKENS, read_tokenizer

pytestmark = pytest.mark.compiles

TEXTS = ('the [MASK] is in town', '[MASK] is the [MASK].', 'far ' + 'too ' * 40 + '[MASK]')


@pytest.mark.parametrize(
    'mesh', [config.Mesh(1), config.Mesh(1, 1, 2), pytest.param(config.Mesh(2, 2, 2), marks=pytest.mark.slow)]
)
def test_fillers_equal_those_of_fill_mask_on_any_mesh(mesh: config.Mesh, tmp_path: Path, capsys) -> None:
    tokenizer, settings = read_tokenizer(tmp_path), dataclasses.replace(MODEL, initializer_range=0.5)
    model = BertForPreTraining(settings, len(TOKENS), nnx.Rngs(0))
    devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
    mesh = make_mesh(mesh, settings, config.Train(global_batch_size=8), devices)
    program = build_program(settings, config.Optimizer(), config.Train(), len(TOKENS), mesh)
    examples = Examples(TEXTS, tokenizer, [program], 32)
    assert '1 of 3 skipped, because longer than 32 tokens' in capsys.readouterr().err
    filled = examples(jax.tree.map(distribute, nnx.state(model, nnx.Param), program.shardings.params))
    pretrained = Pretrained(model, tokenizer, settings, None)
    assert [example['text'] for example in filled] == list(TEXTS[:2])
    for example in filled:
        for fillers, expected in zip(example['fillers'], pretrained.fill_mask(example['text'], 3), strict=True):
            assert [filler['token'] for filler in fillers] == [filler.token for filler in expected]
            assert [filler['score'] for filler in fillers] == pytest.approx([f.score for f in expected], abs=1e-3)


@pytest.mark.parametrize('examples', [('no mask',), (1,), ('two\nlines [MASK]',)])
def test_example_without_mask_or_with_line_break_is_rejected(examples: tuple) -> None:
    with pytest.raises(BadInput, match=r'config\.train\.examples'):
        config.resolve({'train': {'examples': examples}})
    assert not Examples((), None, [], 0)
