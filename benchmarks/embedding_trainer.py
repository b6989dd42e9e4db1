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

from benchmarks.finetuning_trainer import median_speed
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
    return SentenceTransformerTrainingArguments(
        output_dir=str(directory),
        max_steps=settings['steps'],
        per_device_train_batch_size=settings['batch'],
        batch_sampler=BatchSamplers.NO_DUPLICATES if is_infonce else BatchSamplers.BATCH_SAMPLER,
        learning_rate=settings['learning_rate'],
        weight_decay=settings['weight_decay'],
        adam_beta1=settings['betas'][0],
        adam_beta2=settings['betas'][1],
        adam_epsilon=settings['eps'],
        max_grad_norm=settings['clip_norm'],
        lr_scheduler_type='linear',
        warmup_steps=int(settings['warmup_fraction'] * settings['steps']),
        seed=settings['seed'],
        logging_steps=50,
        save_strategy='no',
        report_to='none',
        disable_tqdm=True,
        use_cpu=True,
        bf16=settings['bfloat16'],
    )


def main() -> None:
    """Trains what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('directory', type=Path)
    train(parser.parse_args().directory)


if __name__ == '__main__':
    main()
