"""`evaluate` of a fine-tune: recomputes the metrics of its seeds from their checkpoints and the task's files."""

import json
from typing import Any

import jax
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.finetune.command import Summary, summarize
from bert_jax.finetune.evaluator import TaskEvaluator, model_outputs, task_streams
from bert_jax.finetune.load import load_finetuned
from bert_jax.finetune.metrics import check_libraries
from bert_jax.finetune.seed import SeedResult
from bert_jax.finetune.tasks import TaskData, read_data
from bert_jax.finetune.workdirs import read_run, seeds_of
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.sharding import parameter_specs
from bert_jax.train.step import make_forward
from bert_jax.workdir import identity
from bert_jax.workdir.result import save


def evaluate(workdir: str, step: int | None = None, *, output: str = '') -> Summary:
    """Evaluates every seed of a fine-tune on its validation files, in float32; writes WORKDIR/evaluation.json.

    If the workdir is not writable, this is reported and the file is not written.

    Args:
      step: which checkpoint of each seed to evaluate; by default, the newest.
      output: file to write instead of WORKDIR/evaluation.json.

    Raises:
      BadInput: if a file of the task is missing or has changed since the run, or the checkpoint does not exist.
    """
    check_libraries()
    results: list[SeedResult] = []
    data = None
    for directory in seeds_of(workdir):
        resolved, trained = read_run(directory), load_finetuned(directory, step)
        data = data or read_data(resolved, trained.tokenizer)
        _check_unchanged(directory, data)
        mesh = make_mesh(config.Mesh(), trained.config, config.Train(), jax.devices()[:1])
        graph, params = nnx.split(trained.model)
        forward = make_forward(graph, mesh, parameter_specs(params, mesh), model_outputs)
        evaluator = TaskEvaluator(data, forward, task_streams(resolved, trained.tokenizer.pad_id, mesh), mesh)
        metrics, _ = evaluator.evaluate(params)
        assert trained.step is not None  # models from workdirs have a step
        results.append(SeedResult(resolved.train.seed, trained.step, True, None, metrics))
    summary = summarize(results, len(results))
    save(json.dumps(as_json(summary)) + '\n', workdir, 'evaluation.json', output)
    return summary


def as_json(summary: Summary) -> dict[str, Any]:
    """Returns {metrics, spread, seeds: [{seed, step, metrics}]}."""
    seeds = [{name: seed[name] for name in ('seed', 'step', 'metrics')} for seed in summary.seeds]
    return {'metrics': summary.metrics, 'spread': summary.spread, 'seeds': seeds}


def _check_unchanged(workdir: str, data: TaskData) -> None:
    if identity.load_fingerprint(workdir)['data'] != data.content_hash:
        raise BadInput(
            'config.task',
            'names files that have changed since the run was trained and evaluated on them',
            f'the files that {workdir}/config.json names, unchanged',
            'restore the files; the metrics measured at the time are in results.json',
        )
