"""Loads a model by name, fine-tuned or not, from a workdir, an export or another Hugging Face directory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from flax import nnx

from bert_jax import config
from bert_jax.config.finetuning import FinetuneConfig, num_outputs, optimizer_of
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.finetune.exported import read_finetuned, task_architecture
from bert_jax.finetune.heads import TaskModel
from bert_jax.finetune.metrics import format_metric
from bert_jax.finetune.model import build_of
from bert_jax.finetune.predict import FineTuned
from bert_jax.finetune.workdirs import read_results, read_run, seeds_of
from bert_jax.pretrained.load import Pretrained, check_has_no_steps, load_pretrained
from bert_jax.pretrained.provenance import of_finetune, start_of
from bert_jax.text.tokenizer import load_saved_tokenizer
from bert_jax.train.state import model_of
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import restore_whole


def load_model(name: str, step: int | None = None) -> Pretrained:
    """Loads a model with its tokenizer; returns a `FineTuned` if it has a task head.

    Args:
      name: a workdir (the best seed, if there are several), `WORKDIR@STEP`, an export or a Hugging Face directory.
      step: checkpoint of a workdir; by default, the newest.

    Raises:
      BadInput: names the file that is missing or does not fit.
    """
    directory, step_in_name = identity.split_step(name)
    step = step_in_name if step is None else step
    if seeds_of(directory):
        return load_finetuned(choose_seed(directory), step)
    architecture = task_architecture(Path(directory))
    if architecture is None:
        return load_pretrained(directory, step)
    check_has_no_steps(directory, step)
    return read_finetuned(Path(directory), architecture)


def load_finetuned(workdir: str, step: int | None = None) -> FineTuned:
    """Loads the model of one seed, at its newest checkpoint or at `step`.

    Raises:
      BadInput: if there is no such checkpoint.
    """
    resolved, recorded = read_run(workdir), identity.load_fingerprint(workdir)
    model = dataclasses.replace(
        resolved.model, dtype='float32', remat='none', attention='auto'
    )  # 'fused' has no float32
    tokenizer = load_saved_tokenizer(Path(workdir) / 'tokenizer')
    labels, steps = tuple(recorded['labels']), recorded['train.steps']
    build = task_builder(resolved, labels)
    as_trained = config.Config(
        model=model, optimizer=optimizer_of(resolved.optimizer, steps), train=config.Train(steps=steps)
    )
    state = restore_whole(workdir, as_trained, tokenizer.vocab_size, step, build)
    merged = model_of(state.params, model, tokenizer.vocab_size, build)
    return FineTuned(
        merged,
        tokenizer,
        model,
        int(state.step),
        of_finetune(resolved, start_of(workdir)),
        labels,
        resolved.task,
        takes_pairs=bool(resolved.task.text_pair),
        null_threshold=_null_threshold(workdir, int(state.step)) if recorded.get('unanswerable') else None,
    )


def _null_threshold(workdir: str, step: int) -> float:
    """Returns the 'no answer' threshold tuned on the validation file at this step, or 0 if there is none."""
    results = read_results(workdir)
    return results['metrics'].get('best_f1_thresh', 0.0) if results and results['step'] == step else 0.0


def task_builder(
    resolved: FinetuneConfig, labels: tuple[str, ...]
) -> Callable[[config.Model, int, nnx.Rngs], TaskModel]:
    """Returns a function that builds the model of a task; labels: see `FineTuned`."""
    return build_of(resolved, num_outputs(resolved.task.kind, len(labels)))


def choose_seed(workdir: str) -> str:
    """Returns the workdir of the seed with the best main metric; prints the choice if there are several."""
    seeds = seeds_of(workdir)
    metrics_of = {seed: results['metrics'] for seed in seeds if (results := read_results(seed)) is not None}
    if len(seeds) == 1:
        return seeds[0]
    if not metrics_of:
        raise BadInput(
            workdir,
            'holds no finished seed',
            'a fine-tune with at least one finished seed',
            'rerun the finetune command',
        )
    main = next(iter(next(iter(metrics_of.values()))))
    best = max(metrics_of, key=lambda seed: metrics_of[seed][main])
    say(f'{best} is the best of {len(metrics_of)} seeds by {main} ({format_metric(main, metrics_of[best][main])})')
    return best
