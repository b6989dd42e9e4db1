"""The files of a fine-tune: WORKDIR/seed-N is a run of its own, WORKDIR/results.json what they have in common.

finetune.json                   how many seeds were asked for
seed-N/config.json, tokenizer/, checkpoints/, metrics.jsonl, tensorboard/     as in pretraining
seed-N/results.json             figures of the last step; there when the run is finished
seed-N/predictions-SPLIT.…      what the model says about each example
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
    """Where the run of a seed lies."""
    return str(epath.Path(workdir) / f'seed-{seed}')


def is_finetune(workdir: str) -> bool:
    """Whether a directory is the run of a seed."""
    return identity.is_workdir(workdir) and 'task' in identity.load_settings(workdir)


def seeds_of(workdir: str) -> list[str]:
    """The workdirs of the seeds of a fine-tune, by number; the workdir itself if it is one seed's."""
    if is_finetune(workdir):
        return [workdir]
    found = [path for path in matching(epath.Path(workdir), 'seed-*') if is_finetune(str(path))]
    return [str(path) for path in sorted(found, key=lambda path: int(path.name.rpartition('-')[2]))]


def read_run(workdir: str) -> FinetuneConfig:
    """The config of a seed's run.

    Raises:
      BadInput: when the workdir holds none, or another kind of run.
    """
    if not is_finetune(workdir):
        expected = 'the run of a seed, like WORKDIR/seed-0'
        raise BadInput(workdir, 'is not the workdir of a fine-tune', expected, 'name another --workdir')
    recorded = identity.load_settings(workdir)
    return with_values_before(resolve(recorded), recorded)


def fingerprint(config: FinetuneConfig, data: TaskData, tokenizer_hash: str, steps: int) -> dict[str, Any]:
    """What must not change when a fine-tune is continued: content, never paths, mesh, microbatches or intervals."""
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
    """Writes finetune.json: how many seeds a fine-tune has, begun or not."""
    write_whole(epath.Path(workdir) / 'finetune.json', json.dumps({'num_seeds': num_seeds}) + '\n')


def read_plan(workdir: str) -> tuple[FinetuneConfig, int]:
    """What the fine-tune in a workdir is: the config of its first seed, and how many seeds were asked for.

    Raises:
      BadInput: when there is none, or the workdir is one seed's.
    """
    if is_finetune(workdir):
        whole = epath.Path(workdir).parent
        raise BadInput(workdir, 'is the run of one seed', 'the workdir of the fine-tune', f'--workdir={whole}')
    seeds, path = seeds_of(workdir), epath.Path(workdir) / 'finetune.json'
    if not seeds:
        found = f'is missing, and {workdir} holds no fine-tune to go on with'
        raise BadInput('--config', found, 'a config file', '--config=configs/finetune/glue.py:sst2')
    num_seeds = _num_seeds(path) if path.exists() else len(seeds)
    return read_run(seeds[0]), num_seeds


def _num_seeds(path: epath.Path) -> int:
    found = read_json(path).get('num_seeds')
    if type(found) is not int or not 0 < found < 2**31:
        raise BadInput(str(path), f'num_seeds is {found!r}', 'how many seeds were asked for', 'name it with --seeds')
    return found


def read_results(workdir: str) -> dict[str, Any] | None:
    """The results.json of a seed's run; None while there is none.

    Raises:
      BadInput: when it is damaged.
    """
    path = epath.Path(workdir) / 'results.json'
    if not path.exists():
        return None
    found = read_json(path)
    metrics = found.get('metrics')
    if type(found.get('step')) is not int or not isinstance(metrics, dict):
        raise BadInput(str(path), 'holds no step with its metrics', 'the file that finetune wrote', f'rm {path}')
    return found


def write_results(workdir: str, results: dict[str, Any]) -> None:
    """Writes results.json, whole."""
    write_whole(epath.Path(workdir) / 'results.json', json.dumps(results, indent=2) + '\n')
