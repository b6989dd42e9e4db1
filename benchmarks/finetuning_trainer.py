"""Runs one fine-tune with the `transformers` Trainer with dynamic padding, for `benchmarks.finetuning`.

    python -m benchmarks.finetuning_trainer DIRECTORY

The directory holds settings.json and examples.npz. The run adds run.json and outputs.npy, the outputs for the
validation examples, in order.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.hugging_face_trainer import Clock

_WARM_UP = 5  # steps that are not timed
_CLASSES = {
    'classification': transformers.AutoModelForSequenceClassification,
    'regression': transformers.AutoModelForSequenceClassification,
    'tagging': transformers.AutoModelForTokenClassification,
    'spans': transformers.AutoModelForQuestionAnswering,
}


def examples(arrays: Any, part: str, kind: str) -> list[dict[str, Any]]:
    """Returns the input of the collator, one dict per example."""
    ids, starts, second_starts, labels = (
        arrays[f'{part}_{name}'] for name in ('ids', 'starts', 'second_starts', 'labels')
    )
    inputs = []
    for index, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        types = (np.arange(stop - start) >= second_starts[index]).astype(int)
        example: dict[str, Any] = {'input_ids': ids[start:stop].tolist(), 'token_type_ids': types.tolist()}
        if kind == 'tagging':
            example['labels'] = np.where(labels[start:stop] < 0, -100, labels[start:stop]).tolist()
        elif kind == 'spans':
            example |= dict(zip(('start_positions', 'end_positions'), labels[index].tolist(), strict=True))
        else:
            example['labels'] = labels[index].item()
        inputs.append(example)
    return inputs


def median_speed(times: list[float], every: int, batch: int) -> float | None:
    """Returns examples per second, the median over intervals of `every` steps; None if there is no whole interval."""
    marks = times[_WARM_UP::every]
    if len(marks) < 2:
        return None
    return statistics.median(every * batch / (end - start) for start, end in zip(marks[:-1], marks[1:], strict=True))


def arguments_of(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of TrainingArguments that `benchmarks.finetuning.trainer_settings` determine."""
    return {
        'output_dir': str(directory),
        'max_steps': settings['steps'],
        'per_device_train_batch_size': settings['batch'],
        'learning_rate': settings['learning_rate'],
        'weight_decay': settings['weight_decay'],
        'adam_beta1': settings['betas'][0],
        'adam_beta2': settings['betas'][1],
        'adam_epsilon': settings['eps'],
        'max_grad_norm': settings['clip_norm'],
        'lr_scheduler_type': 'linear',
        'warmup_steps': int(settings['warmup_fraction'] * settings['steps']),
        'seed': settings['seed'],
        'logging_steps': 50,
        'save_strategy': 'no',
        'report_to': 'none',
        'disable_tqdm': True,
        'use_cpu': True,
        'bf16': settings['bfloat16'],
    }


def finetune(directory: Path) -> None:
    """Trains, predicts and writes the results."""
    settings, arrays = json.loads((directory / 'settings.json').read_text()), np.load(directory / 'examples.npz')
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.set_seed(settings['seed'])
    kind = settings['kind']
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings['encoder'])
    labels = {} if kind == 'spans' else {'num_labels': settings['num_outputs']}
    model = _CLASSES[kind].from_pretrained(settings['encoder'], **labels, **settings['model'])
    collator = (
        transformers.DataCollatorForTokenClassification if kind == 'tagging' else transformers.DataCollatorWithPadding
    )
    clock = Clock(float('inf'))
    arguments = transformers.TrainingArguments(
        **arguments_of(directory, settings), per_device_eval_batch_size=settings['batch']
    )
    train, dev = (examples(arrays, part, kind) for part in ('train', 'dev'))
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=train, data_collator=collator(tokenizer), callbacks=[clock]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    outputs = trainer.predict(dev).predictions
    np.save(directory / 'outputs.npy', np.stack(outputs, axis=-1) if kind == 'spans' else outputs)
    result = {'examples_per_second': median_speed(clock.times, settings['log_every'], settings['batch'])}
    (directory / 'run.json').write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('directory', type=Path)
    finetune(parser.parse_args().directory)


if __name__ == '__main__':
    main()
