"""`evaluate` of a fine-tune: the metrics of its seeds, recomputed from their checkpoints and the task's files."""

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
from bert_jax.finetune.seed import Outcome
from bert_jax.finetune.tasks import TaskData, open_task
from bert_jax.finetune.workdirs import read_run, seeds_of
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.sharding import parameter_specs
from bert_jax.train.step import make_forward
from bert_jax.workdir import identity
from bert_jax.workdir.result import save


def evaluate(workdir: str, step: int | None = None, *, output: str = '') -> Summary:
    """Evaluates every seed of a fine-tune on its validation files, in float32; writes WORKDIR/evaluation.json.

    A workdir that cannot be written to is reported and left as it is.

    Args:
      step: of the checkpoints; the newest without it.
      output: file to write instead.

    Raises:
      BadInput: when a file of the task is not there any more or is another than the run learnt from, or there is no
        such checkpoint.
    """
    check_libraries()
    outcomes: list[Outcome] = []
    data = None
    for place in seeds_of(workdir):
        resolved, trained = read_run(place), load_finetuned(place, step)
        data = data or open_task(resolved.task, resolved.train, trained.tokenizer)
        _check_is_same(place, data)
        mesh = make_mesh(config.Mesh(), trained.config, config.Train(), jax.devices()[:1])
        graph, params = nnx.split(trained.model)
        forward = make_forward(graph, mesh, parameter_specs(params, mesh), model_outputs)
        evaluator = TaskEvaluator(data, forward, task_streams(resolved, trained.tokenizer.pad_id, mesh), mesh)
        metrics, _ = evaluator.evaluate(params)
        assert trained.step is not None  # it is a workdir's
        outcomes.append(Outcome(resolved.train.seed, trained.step, True, None, metrics))
    found = summarize(outcomes, len(outcomes))
    save(json.dumps(as_json(found)) + '\n', workdir, 'evaluation.json', output)
    return found


def as_json(summary: Summary) -> dict[str, Any]:
    """{metrics, spread, seeds [{seed, step, metrics}]}."""
    seeds = [{name: seed[name] for name in ('seed', 'step', 'metrics')} for seed in summary.seeds]
    return {'metrics': summary.metrics, 'spread': summary.spread, 'seeds': seeds}


def _check_is_same(workdir: str, data: TaskData) -> None:
    if identity.load_fingerprint(workdir)['data'] != data.content_hash:
        raise BadInput(
            'config.task',
            'the files hold other examples than those that the run learnt from and was judged by',
            f'those of {workdir}/config.json, unchanged',
            'the figures of then are in results.json',
        )
