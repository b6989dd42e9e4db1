"""Pretraining as most people run it: `BertForMaskedLM` under the Trainer of `transformers`, in a process of its own.

    python -m benchmarks.hugging_face_trainer --text=FILE.jsonl --tokenizer=DIR --model=JSON --steps=N --output=DIR

On the CPU, AdamW, linear warm-up and decay, dropout as in `BertConfig`; texts are tokenised once, joined, and
cut into chunks of one length, as in the library's `run_mlm.py`. It ends at `--steps` or, if that comes first, at
`--stop_at`. Writes the model, its tokenizer and `run.json`.
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

_WARM_UP = 5  # steps that are not timed
_TEXTS_AT_ONCE = 1000


def chunks(text: Path, tokenizer: Any, length: int, path: Path) -> np.ndarray:
    """The ids of all texts, [CLS] and [SEP] around each, joined and cut: uint16 [N, L]; kept at `path`."""
    if not path.exists():
        joined = np.concatenate([np.array(ids, np.uint16) for ids in _encoded(text, tokenizer)])
        whole = joined[: len(joined) // length * length].reshape(-1, length)
        path.with_suffix('.partial').write_bytes(whole.tobytes())
        path.with_suffix('.partial').rename(path)
    return np.memmap(path, np.uint16, 'r').reshape(-1, length)


def _encoded(text: Path, tokenizer: Any) -> Iterator[list[int]]:
    with open(text) as lines:
        texts = [json.loads(line)['text'] for line in lines]
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        yield from tokenizer(texts[start : start + _TEXTS_AT_ONCE], verbose=False)['input_ids']


class Rows(torch.utils.data.Dataset):
    """Chunks as the data collator takes them."""

    def __init__(self, chunks: np.ndarray):
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        return {'input_ids': self._chunks[number].tolist()}


class Clock(transformers.TrainerCallback):
    """Times the steps, says how far it is, and ends the training at a time (of `time.time`)."""

    def __init__(self, stop_at: float):
        self._stop_at, self.begun, self.times = stop_at, 0.0, []

    def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self.begun = time.time()

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
        """The median; None where all steps were warm-up."""
        between = [end - start for start, end in itertools.pairwise(self.times[_WARM_UP:])]
        return statistics.median(between) if between else None


def pretrain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains, saves the model; what it came to."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.set_seed(arguments.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    begun = time.time()
    rows = Rows(chunks(arguments.text, tokenizer, arguments.length, arguments.chunks))
    tokenise_seconds = time.time() - begun
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
        'train_seconds': clock.times[-1] - clock.begun,
        'tokenise_seconds': tokenise_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--text', type=Path, required=True, help='a JSON object a line, field `text`')
    parser.add_argument('--tokenizer', type=Path, required=True)
    parser.add_argument('--chunks', type=Path, required=True, help='where the tokenised text is kept')
    parser.add_argument('--model', required=True, help='fields of BertConfig, as JSON')
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--steps', type=int, required=True)
    parser.add_argument('--stop_at', type=float, default=float('inf'), help='seconds since the epoch')
    parser.add_argument('--length', type=int, default=128)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--learning_rate', type=float, default=5e-4)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='bfloat16: by autocast')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = pretrain(arguments)
    (arguments.output / 'run.json').write_text(json.dumps(found))


if __name__ == '__main__':
    main()
