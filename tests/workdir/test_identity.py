"""What a workdir's config.json may set, and what it may not."""

import dataclasses
import json
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.config import Config
from bert_jax.config.fields import Role, identity_of, names_with
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import BadInput
from bert_jax.finetune.workdirs import read_run
from bert_jax.workdir import identity
from tests.support.models import read_tokenizer


def _write(workdir: Path, config: dict) -> None:
    workdir.mkdir()
    (workdir / 'config.json').write_text(json.dumps({'config': config, 'fingerprint': {}}))


def test_workdir_cannot_set_an_output_path(tmp_path: Path, capsys) -> None:
    settings = dataclasses.asdict(Config())
    settings['data'] |= {'local_copy': str(tmp_path / 'victim'), 'corpus': 'corpora/theirs'}
    _write(tmp_path / 'run', settings)
    for _ in range(2):
        assert identity.load_config(str(tmp_path / 'run')).data.local_copy == ''
    assert identity.load_config(str(tmp_path / 'run')).data.corpus == 'corpora/theirs'
    shown = capsys.readouterr().err
    assert shown.count('is ignored') == 1 and f"data.local_copy='{tmp_path}/victim'" in shown
    stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert stored['config']['data']['local_copy'] == f'{tmp_path}/victim'  # the file is not changed


def test_config_without_output_paths_is_read_without_warning(tmp_path: Path, capsys) -> None:
    _write(tmp_path / 'run', dataclasses.asdict(Config()))
    assert identity.load_config(str(tmp_path / 'run')) == Config()
    resolved = dataclasses.replace(FinetuneConfig(), init='models/mine')
    _write(tmp_path / 'task', json.loads(json.dumps(dataclasses.asdict(resolved))))
    assert read_run(str(tmp_path / 'task')) == resolved
    assert not capsys.readouterr().err


@pytest.mark.parametrize('family, section', config.FAMILIES.items())
def test_fields_that_shape_a_family_never_change(family: str, section: type, tmp_path: Path) -> None:
    tokenizer, workdir = read_tokenizer(tmp_path), str(tmp_path / 'run')
    shapes = [*names_with(Role.SHAPES, section), 'vocab_size']
    before = {f'model.{name}': 1 for name in shapes}
    resolved = config.resolve(config.defaults(family))
    identity.claim(workdir, resolved, tokenizer, before)
    for name in before:
        with pytest.raises(BadInput, match=f'names {name}, but the checkpoints'):
            identity.claim(workdir, resolved, tokenizer, before | {name: 2}, allow_change=[name])


def test_weight_decay_that_begins_to_differ_needs_another_workdir(tmp_path: Path) -> None:
    """With several weight decays the optimizer's state has one more array, which old checkpoints lack."""

    def run(*decays: float) -> Config:
        phases = [{'steps': 5, 'weight_decay': decay} for decay in decays]
        return config.resolve({'optimizer': {'warmup_steps': 0}, 'phases': phases})

    def claim(resolved: Config) -> None:
        identity.claim(workdir, resolved, tokenizer, identity_of(resolved), allow_change=['phases'])

    tokenizer, workdir = read_tokenizer(tmp_path), str(tmp_path / 'run')
    claim(run(0.1, 0.1))
    claim(run(0.3, 0.3))
    with pytest.raises(BadInput, match='whether phases differ in weight_decay'):
        claim(run(0.3, 0.1))


@pytest.mark.parametrize('whole', [Config(), FinetuneConfig()])
def test_run_keeps_the_dtype_that_its_first_device_chose(whole: Config, tmp_path: Path, capsys) -> None:
    for dtype in ('float32', 'bfloat16'):
        recorded = dataclasses.replace(whole, model=whole.model.with_dtype(dtype))
        workdir = str(tmp_path / dtype)
        _write(tmp_path / dtype, json.loads(json.dumps(dataclasses.asdict(recorded))))
        assert identity.with_recorded_defaults(whole, workdir) == recorded
        assert identity.with_recorded_defaults(whole, workdir, ['model.dtype']).model.dtype == 'auto'
        other = dataclasses.replace(whole, model=dataclasses.replace(whole.model, dtype='bfloat16'))
        assert identity.with_recorded_defaults(other, workdir) == other  # rejected later, unless it is the same
    assert not capsys.readouterr().err
