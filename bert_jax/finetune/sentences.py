"""How a fine-tuned embedding model turns a text into a vector, for `embed`, `evaluate` and exports."""

import dataclasses
from pathlib import Path

from flax import nnx

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.finetune.predict import FineTuned
from bert_jax.finetune.workdirs import read_run, seeds_of
from bert_jax.pretrained import sentences, tensor_names
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.load import Pretrained, from_tensors
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.workdir import identity


def read_settings(name: str) -> SentenceSettings:
    """Returns the settings of a model by name: those of its run if that trained embeddings, else of its directory.

    Raises:
      BadInput: see `pretrained.sentences.read_settings`.
    """
    seeds = seeds_of(identity.split_step(name)[0])
    resolved = read_run(seeds[0]) if seeds else None
    if resolved is None or resolved.task.kind != 'embedding':
        return sentences.read_settings(name)
    return settings_of(resolved, name)


def settings_of(resolved: FinetuneConfig, directory: str) -> SentenceSettings:
    """Returns the settings of an embedding model; the names of the prompts are those of sentence-transformers."""
    embedding = resolved.embedding
    prompts = {'query': embedding.query_prompt, 'document': embedding.passage_prompt}
    return SentenceSettings(
        directory,
        max_length=resolved.task.sequence_length,
        modes=(embedding.pooling,),
        normalize=embedding.normalize,
        prompts=prompts if any(prompts.values()) else {},
        matryoshka_dims=embedding.matryoshka_dims,
    )


def without_task(trained: FineTuned, directory: str) -> Pretrained:
    """Returns the encoder of an embedding model as a model whose heads are all untrained."""
    model, tokenizer, path = trained.config, trained.tokenizer, Path(directory)
    params, table = nnx.state(trained.model, nnx.Param), hub_of(model).encoder_tensors(model)
    tensors = tensor_names.to_tensors(params, model, tokenizer.vocab_size, table)
    headless = from_tensors(path, path, tensors, model, tokenizer)
    absent = headless.provenance.untrained_heads
    provenance = dataclasses.replace(trained.provenance, untrained_heads=absent)
    return dataclasses.replace(headless, provenance=provenance, step=trained.step)
