"""Reads and writes the files of a fine-tune. WORKDIR/seed-N holds one seed, WORKDIR/results.json the summary.

finetune.json                   number of seeds requested
seed-N/config.json, tokenizer/, checkpoints/, metrics.jsonl, tensorboard/     as in pretraining
seed-N/results.json             metrics of the last step; exists once the seed is finished
seed-N/predictions-SPLIT.…      a prediction for each example
"""

import json
from typing import Any

from etils import epath

from bert_jax.config.fields import identity_of, with_values_before
from bert_jax.config.finetuning import FinetuneConfig, resolve
from bert_jax.errors import BadInput
from bert_jax.files import matching, write_whole
from bert_jax.finetune.tasks import TaskData
from bert_jax.json_files import read_json
from bert_jax.workdir import identity


def seed_workdir(workdir: str, seed: int) -> str:
    """Returns the workdir of a seed."""
    return str(epath.Path(workdir) / f'seed-{seed}')


def is_finetune(workdir: str) -> bool:
    """Returns whether a directory is the workdir of one seed."""
    return identity.is_workdir(workdir) and 'task' in identity.load_settings(workdir)


def seeds_of(workdir: str) -> list[str]:
    """Returns the workdirs of the seeds of a fine-tune, in order of the seed; of one seed, its own workdir."""
    if is_finetune(workdir):
        return [workdir]
    paths = [path for path in matching(epath.Path(workdir), 'seed-*') if is_finetune(str(path))]
    return [str(path) for path in sorted(paths, key=lambda path: int(path.name.rpartition('-')[2]))]


def read_run(workdir: str) -> FinetuneConfig:
    """Reads the config of a seed.

    Raises:
      BadInput: if the workdir holds no run, or another kind of run.
    """
    if not is_finetune(workdir):
        expected = 'the workdir of one seed, such as WORKDIR/seed-0'
        raise BadInput(workdir, 'is not the workdir of a fine-tune', expected, 'choose another --workdir')
    recorded = identity.load_settings(workdir)
    return with_values_before(resolve(recorded), recorded)


def fingerprint(config: FinetuneConfig, data: TaskData, tokenizer_hash: str, steps: int) -> dict[str, Any]:
    """Returns what must not change when a fine-tune resumes: content, not paths, mesh, microbatches or intervals."""
    return (
        identity_of(config)
        | {
            'train.steps': steps,
            'data': data.content_hash,
            'labels': list(data.labels),
            'tokenizer': tokenizer_hash,
        }
        | ({'unanswerable': True} if data.learns_no_answer else {})
    )


def write_plan(workdir: str, num_seeds: int) -> None:
    """Writes finetune.json: the number of seeds, including those not yet started."""
    write_whole(epath.Path(workdir) / 'finetune.json', json.dumps({'num_seeds': num_seeds}) + '\n')


def read_plan(workdir: str) -> tuple[FinetuneConfig, int]:
    """Returns the config of the first seed in a workdir, and the number of seeds requested.

    Raises:
      BadInput: if there is no fine-tune, or the workdir is that of one seed.
    """
    if is_finetune(workdir):
        parent = epath.Path(workdir).parent
        raise BadInput(workdir, 'is the workdir of one seed', 'that of the whole fine-tune', f'--workdir={parent}')
    seeds, path = seeds_of(workdir), epath.Path(workdir) / 'finetune.json'
    if not seeds:
        found = f'is missing, and {workdir} holds no fine-tune to resume'
        raise BadInput('--config', found, 'a config file', '--config=configs/finetune/glue.py:sst2')
    num_seeds = _num_seeds(path) if path.exists() else len(seeds)
    return read_run(seeds[0]), num_seeds


def _num_seeds(path: epath.Path) -> int:
    num_seeds = read_json(path).get('num_seeds')
    if type(num_seeds) is not int or not 0 < num_seeds < 2**31:
        raise BadInput(
            str(path), f'num_seeds is {num_seeds!r}', 'the number of seeds, at least 1', 'set it with --seeds'
        )
    return num_seeds


def read_results(workdir: str) -> dict[str, Any] | None:
    """Reads results.json of a seed; None if it does not exist yet.

    Raises:
      BadInput: if it is damaged.
    """
    path = epath.Path(workdir) / 'results.json'
    if not path.exists():
        return None
    results = read_json(path)
    metrics = results.get('metrics')
    if type(results.get('step')) is not int or not isinstance(metrics, dict):
        raise BadInput(str(path), 'holds no step with metrics', 'the file that finetune wrote', f'rm {path}')
    return results


def write_results(workdir: str, results: dict[str, Any]) -> None:
    """Writes results.json atomically."""
    write_whole(epath.Path(workdir) / 'results.json', json.dumps(results, indent=2) + '\n')
