"""Trains one embedding model with the trainer of sentence-transformers, for `benchmarks.embedding_training`.

    python -m benchmarks.embedding_trainer DIRECTORY

The directory holds settings.json. The run adds run.json and the trained model in `model`. Requires `datasets`.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer import losses

from benchmarks.finetuning_trainer import arguments_of, median_speed
from benchmarks.hugging_face_trainer import Clock

_LOSSES = {'infonce': losses.MultipleNegativesRankingLoss, 'cosent': losses.CoSENTLoss}


def train(directory: Path) -> None:
    """Trains and writes the results."""
    settings = json.loads((directory / 'settings.json').read_text())
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.set_seed(settings['seed'])
    model = SentenceTransformer(settings['encoder'], device='cpu')
    model.max_seq_length = settings['length']
    with open(settings['pairs'], encoding='utf-8') as file:
        records = [json.loads(line) for line in file]
    columns = {name: [record[name] for record in records] for name in settings['columns']}
    clock = Clock(float('inf'))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=_arguments(directory, settings),
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=_LOSSES[settings['loss']](model, scale=settings['scale']),
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    if len(clock.times) != settings['steps']:
        raise RuntimeError(f'the trainer ended after {len(clock.times)} of {settings["steps"]} steps')
    model.save_pretrained(str(directory / 'model'))
    result = {'examples_per_second': median_speed(clock.times, settings['log_every'], settings['batch'])}
    (directory / 'run.json').write_text(json.dumps(result))


def _arguments(directory: Path, settings: dict[str, Any]) -> SentenceTransformerTrainingArguments:
    is_infonce = settings['loss'] == 'infonce'
    sampler = BatchSamplers.NO_DUPLICATES if is_infonce else BatchSamplers.BATCH_SAMPLER
    return SentenceTransformerTrainingArguments(**arguments_of(directory, settings), batch_sampler=sampler)


def main() -> None:
    """Trains what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('directory', type=Path)
    train(parser.parse_args().directory)


if __name__ == '__main__':
    main()
