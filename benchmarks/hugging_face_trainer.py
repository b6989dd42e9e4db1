"""Pretrains with the Trainer of `transformers`, as most people do, for `benchmarks.pretraining_pays`.

    python -m benchmarks.hugging_face_trainer --text=FILE.jsonl --tokenizer=DIR --model=JSON --steps=N --output=DIR

Trains `BertForMaskedLM` on the CPU with AdamW, linear warm-up and decay, and the dropout of `BertConfig`. Texts are
tokenized once, joined, and cut into chunks of equal length, as in the library's `run_mlm.py`. Training ends after
`--steps` or at `--stop_at`, whichever comes first. Writes the model, its tokenizer and `run.json`.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

_WARM_UP = 5  # first steps, which are not timed
_TEXTS_AT_ONCE = 1000


def chunks(text: Path, tokenizer: Any, length: int, path: Path) -> np.ndarray:
    """Returns the ids of all texts, each within [CLS] and [SEP], joined and cut: uint16 [N, L]; cached at `path`."""
    if not path.exists():
        joined = np.concatenate([np.array(ids, np.uint16) for ids in _tokenize(text, tokenizer)])
        whole = joined[: len(joined) // length * length].reshape(-1, length)
        path.with_suffix('.partial').write_bytes(whole.tobytes())
        path.with_suffix('.partial').rename(path)
    return np.memmap(path, np.uint16, 'r').reshape(-1, length)


def _tokenize(text: Path, tokenizer: Any) -> Iterator[list[int]]:
    with open(text) as lines:
        texts = [json.loads(line)['text'] for line in lines]
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        yield from tokenizer(texts[start : start + _TEXTS_AT_ONCE], verbose=False)['input_ids']


class Rows(torch.utils.data.Dataset):
    """Chunks in the form that the data collator expects."""

    def __init__(self, chunks: np.ndarray):
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {'input_ids': self._chunks[index].tolist()}


class Clock(transformers.TrainerCallback):
    """Times the steps, prints progress, and ends the training at `stop_at`, in seconds since the epoch."""

    def __init__(self, stop_at: float):
        self._stop_at, self.started, self.times = stop_at, 0.0, []

    def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self.started = time.time()

    def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self.times.append(time.time())
        if self.times[-1] >= self._stop_at:
            control.should_training_stop = True

    def on_log(self, arguments: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Called by the Trainer."""
        if 'loss' in logs:
            print(f'Trainer: step {state.global_step}/{state.max_steps}  loss {float(logs["loss"]):.3f}', flush=True)

    def seconds_per_step(self) -> float | None:
        """Returns the median, or None if all steps were warm-up."""
        between = [end - start for start, end in itertools.pairwise(self.times[_WARM_UP:])]
        return statistics.median(between) if between else None


def pretrain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and saves the model; returns the contents of `run.json`."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.set_seed(arguments.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    started = time.time()
    rows = Rows(chunks(arguments.text, tokenizer, arguments.length, arguments.chunks))
    tokenize_seconds = time.time() - started
    model = transformers.BertForMaskedLM(transformers.BertConfig(**json.loads(arguments.model)))
    clock = Clock(arguments.stop_at)
    settings = transformers.TrainingArguments(
        output_dir=str(arguments.output),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.learning_rate,
        weight_decay=0.01,
        lr_scheduler_type='linear',
        warmup_steps=arguments.steps // 10,
        seed=arguments.seed,
        logging_steps=50,
        save_strategy='no',
        report_to='none',
        disable_tqdm=True,
        use_cpu=True,
        bf16=arguments.dtype == 'bfloat16',
    )
    trainer = transformers.Trainer(
        model=model,
        args=settings,
        train_dataset=rows,
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    trainer.save_model(str(arguments.output))
    tokenizer.save_pretrained(str(arguments.output))
    return {
        'steps': trainer.state.global_step,
        'planned_steps': arguments.steps,
        'tokens': trainer.state.global_step * arguments.batch * arguments.length,
        'seconds_per_step': clock.seconds_per_step(),
        'train_seconds': clock.times[-1] - clock.started,
        'tokenize_seconds': tokenize_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--text', type=Path, required=True, help='JSON lines with a field `text`')
    parser.add_argument('--tokenizer', type=Path, required=True)
    parser.add_argument('--chunks', type=Path, required=True, help='file that caches the tokenized text')
    parser.add_argument('--model', required=True, help='fields of BertConfig, as JSON')
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--steps', type=int, required=True)
    parser.add_argument('--stop_at', type=float, default=float('inf'), help='seconds since the epoch')
    parser.add_argument('--length', type=int, default=128)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--learning_rate', type=float, default=5e-4)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='bfloat16 uses autocast')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = pretrain(arguments)
    (arguments.output / 'run.json').write_text(json.dumps(found))


if __name__ == '__main__':
    main()
