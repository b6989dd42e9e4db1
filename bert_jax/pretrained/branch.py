"""Starts a branch of a run: a workdir whose run continues from a checkpoint of another, with another end."""

import json
import os

from etils import epath

from bert_jax.config import Config
from bert_jax.config.anneal import Decay, annealed, check_keeps_past
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.files import files_below, is_local, new_directory
from bert_jax.pretrained.provenance import start_of
from bert_jax.runtime import processes
from bert_jax.workdir import identity, seal
from bert_jax.workdir.checkpoint import checkpoint_directory
from bert_jax.workdir.orbax_files import literal_path
from bert_jax.workdir.step_lines import StepLines

_LINES = ('metrics.jsonl', 'examples.jsonl')


def plan_branch(workdir: str, step: int | None, output: str, changed: Config, decay: Decay) -> tuple[int, Config]:
    """Checks a branch of a run before any device is used.

    Args:
      step: after which it branches; by default, that of the newest checkpoint.
      changed: the config of the run with the changes of the user.

    Returns:
      The step and the config of the branch.

    Raises:
      BadInput: if the checkpoint does not exist, `output` exists, or the branch cannot work.
    """
    config, fingerprint = identity.load_config(workdir), identity.load_fingerprint(workdir)
    if 'imported' in fingerprint:
        raise BadInput(workdir, 'holds an imported model, which has no learning rate', 'the workdir of a run')
    target = _target(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _is_taken(output)
    steps = seal.sealed_steps(checkpoint_directory(workdir))
    chosen = max(steps, default=0) if step is None else step
    if chosen > config.train.steps:
        found = f'comes after the end of the run, which has {config.train.steps:,} steps'
        raise BadInput(f'{workdir}@{chosen}', found, seal.describe_steps(steps))
    if chosen not in steps:
        raise BadInput(f'{workdir}@{chosen}', 'does not exist', seal.describe_steps(steps))
    check_keeps_past(config, changed, chosen)
    return chosen, annealed(changed, chosen, decay)


def create_branch(workdir: str, step: int, output: str, config: Config) -> None:
    """Writes a workdir that `train` resumes as the branch: the checkpoint of the step, and the log up to there.

    Only process 0 writes. The directory gets its name when all of it is written.

    Args:
      config: of the branch.

    Raises:
      BadInput: if the corpus is not that of the run, the checkpoint is damaged, or `output` exists.
    """
    processes.run_on_process_zero(lambda: _create(workdir, step, output, config))


def _create(workdir: str, step: int, output: str, config: Config) -> None:
    streams, theirs = open_streams(config).of_workdir(workdir), identity.load_fingerprint(workdir)
    if (theirs['corpus'], theirs['tokenizer']) != (streams.content_hash, streams.tokenizer.hash):
        raise BadInput(config.data.corpus, f'is not the corpus of {workdir}', 'that corpus')
    initial = {'init': theirs['init']} if 'init' in theirs else {}
    fingerprint = json.loads(json.dumps(identity.fingerprint(streams.config, streams))) | initial
    try:
        with new_directory(_target(output), existing='refuse') as temporary:
            _copy_checkpoint(workdir, step, temporary)
            for name in _LINES:
                if (source := epath.Path(workdir) / name).exists():
                    (temporary / name).write_text(source.read_text())
                    StepLines(epath.Path(temporary) / name, step).close()  # removes the lines of later steps
            branch = {'workdir': workdir, 'step': step}
            start = start_of(workdir)
            identity.write(str(temporary), streams.config, streams.tokenizer, fingerprint, start, branch=branch)
    except FileExistsError:
        raise _is_taken(output) from None


def _copy_checkpoint(workdir: str, step: int, to: epath.Path) -> None:
    source, copy = (checkpoint_directory(str(each)) / str(step) for each in (workdir, to))
    try:
        for name, path in files_below(source).items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(path.read_bytes())
    except FileNotFoundError:
        fix = f'--config.train.keep_every={step} keeps it'
        raise BadInput(f'{workdir}@{step}', 'was deleted by the run while it was copied', 'a kept step', fix) from None
    if damage := seal.damage(copy):
        raise BadInput(f'{workdir}/checkpoints/{step}', damage, 'the bytes that were written')


def _target(output: str) -> epath.Path:
    return epath.Path(os.path.realpath(output)) if is_local(output) else literal_path(output)


def _is_taken(output: str) -> BadInput:
    found, expected = 'exists', 'a new directory'
    return BadInput(f'--output={output}', found, expected, f'bert-jax train --workdir={output} resumes a branch')
