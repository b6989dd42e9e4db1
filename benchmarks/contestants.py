"""Runs one contestant of `benchmarks.speed`. It reads requests from standard input and writes answers to its output.

    python -m benchmarks.contestants NAME

Requests and answers are JSON objects, one per line. {"load": DIRECTORY} builds and compiles a workload's model and
optimizer; all start from `weights.safetensors` there, which the first to load writes. {"steps": N} trains and returns
seconds and losses. {"matmuls": true} times the matmuls of a step alone.
"""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks import workloads
from bert_jax.data.batches import Batch
from bert_jax.pretrained.hub import NSP_HEAD


class BertJax:
    """This project's train step, on batches held in memory."""

    def __init__(self, dtype: str):
        from bert_jax.runtime.devices import select_platform

        select_platform('')  # as every command does; on a CPU it keeps freed memory
        self._dtype = dtype

    def load(self, directory: Path) -> None:
        """Compiles the step. Starts from the weights in the directory, or writes new ones there."""
        import jax
        from safetensors.numpy import load_file, save_file

        from bert_jax.data.device_batches import local_rows, make_global
        from bert_jax.pretrained.tensor_names import from_tensors, to_tensors
        from bert_jax.runtime.mesh import mesh_of_run
        from bert_jax.train.program import build_program

        self._state = self._step = None
        config, self._batches = workloads.read(directory)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=self._dtype))
        self._config, self._mesh = config, mesh_of_run(config)
        vocab_size, rows = config.tokenizer.vocab_size, config.train.global_batch_size
        program = build_program(config.model, config.optimizer, config.train, vocab_size, self._mesh)
        weights = directory / 'weights.safetensors'
        params = None
        if weights.exists():
            params = from_tensors(load_file(weights), config.model, vocab_size, str(weights))
        state = program.init_state(config.train.seed, params)
        if params is None:
            save_file(to_tensors(state.params, config.model, vocab_size), weights)
        self._place = lambda batch: make_global(batch, local_rows(self._mesh, rows), self._mesh, rows)
        self._step, self._state = program.lower(self._place(self._batches[0])).compile(), state
        self._done, self._get = 0, jax.device_get

    def steps(self, count: int) -> list[float]:
        """Trains for `count` steps; returns their losses."""
        losses = []
        for _ in range(count):
            batch = self._place(self._batches[self._done % len(self._batches)])
            self._state, metrics = self._step(self._state, batch)
            losses.append(metrics['loss'])
            self._done += 1
        return [float(loss) for loss in self._get(losses)]

    def matmul_seconds(self) -> float:
        """Returns the seconds that the matmuls of a step take alone."""
        from bert_jax.plan.matmuls import MatmulTimer

        self._matmuls = getattr(self, '_matmuls', None) or MatmulTimer(
            self._config, self._config.tokenizer.vocab_size, self._mesh
        )
        return self._matmuls.seconds()

    def peak_flops(self) -> float | None:
        """Returns the published peak of the device, in FLOP/s, or None if there is none."""
        from bert_jax.runtime.devices import published_peak_flops

        return published_peak_flops()

    def peak_bytes(self) -> int:
        """Returns the peak memory in bytes: of the device if it reports it, else of this process."""
        from bert_jax.runtime.devices import peak_memory

        return peak_memory()[0]


class Torch:
    """The training loop that the contestants in PyTorch share."""

    def __init__(self, dtype: str, compiled: bool = False):
        import torch

        self._torch, self._compiled = torch, compiled
        self._device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self._autocast = torch.autocast(self._device, torch.bfloat16, enabled=dtype == 'bfloat16')
        self._dtype = getattr(torch, dtype)
        torch.set_float32_matmul_precision('high')

    def load(self, directory: Path) -> None:
        """Builds the model from the weights in the directory; compiles it if `compiled`."""
        from safetensors.torch import load_file

        self._model = self._optimizer = None
        self._config, batches = workloads.read(directory)
        model = self._make(load_file(directory / 'weights.safetensors')).to(self._device).train()
        settings = self._config.optimizer
        decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        self._optimizer = self._torch.optim.AdamW(
            [{'params': decayed, 'weight_decay': settings.weight_decay}, {'params': others, 'weight_decay': 0.0}],
            lr=settings.peak_learning_rate,
            betas=(settings.b1, settings.b2),
            eps=settings.eps,
            fused=True,
        )
        self._parameters, self._clip = [*model.parameters()], settings.clip_norm
        self._batches = [self._prepare(batch) for batch in batches]
        self._model = self._torch.compile(model) if self._compiled else model
        self._done = 0

    def steps(self, count: int) -> list[float]:
        """Trains for `count` steps; returns their losses."""
        losses = []
        for _ in range(count):
            batch = self._placed(self._batches[self._done % len(self._batches)])
            with self._autocast:
                loss = self._loss(batch)
            loss.backward()
            self._torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            self._done += 1
        return [float(loss) for loss in losses]

    def matmul_seconds(self) -> float:
        """Returns the seconds that the matmuls of a step take alone."""
        from bert_jax.plan.matmuls import step_matmuls

        torch, total = self._torch, 0.0
        for _, batch, m, k, n, count in step_matmuls(self._config, self._config.tokenizer.vocab_size, _ONE_DEVICE):
            for rows, inner, columns in ((m, k, n), (m, n, k), (k, m, n)):
                shapes = (
                    ((rows, inner), (inner, columns)) if batch == 1 else ((batch, rows, inner), (batch, inner, columns))
                )
                left, right = (torch.full(shape, 0.01, dtype=self._dtype, device=self._device) for shape in shapes)
                total += count * _seconds(lambda left=left, right=right: left @ right, self._wait)
        return total

    def _wait(self) -> None:
        if self._device == 'cuda':
            self._torch.cuda.synchronize()

    def _placed(self, batch: dict) -> dict:
        return {name: value.to(self._device) for name, value in batch.items()}

    def peak_flops(self) -> None:
        """Returns None: the contestants in JAX report it."""

    def peak_bytes(self) -> int | None:
        """Returns the peak memory of a GPU in bytes, or None on a CPU."""
        return self._torch.cuda.max_memory_allocated() if self._device == 'cuda' else None


class HuggingFace(Torch):
    """The pretraining class of transformers as its Trainer runs it: logits everywhere, fused AdamW, not compiled."""

    def _make(self, tensors: dict):
        import transformers

        from bert_jax.pretrained.families import hub_of
        from bert_jax.pretrained.hugging_face import model_json

        self._hub = hub_of(self._config.model)
        tokens = {'pad_id': 0, 'cls_id': 1, 'sep_id': 2, 'mask_id': 3}  # as in random_rows.py
        vocabulary = SimpleNamespace(vocab_size=self._config.tokenizer.vocab_size, **tokens)
        fields = model_json(self._config.model, vocabulary)
        settings = getattr(transformers, f'{self._hub.class_prefix}Config')(**fields)
        model = getattr(transformers, self._hub.pretraining_class(()))(settings)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        if unexpected or any('decoder' not in name and 'position_ids' not in name for name in missing):
            raise ValueError(f'tensors missing: {missing}, unknown: {unexpected}')
        model.tie_weights()
        return model

    def _prepare(self, batch: Batch) -> dict:
        if batch.cls_positions.shape[1] > 1:
            raise ValueError('the classes of transformers do not support packed rows')
        labels = np.full(batch.input_ids.shape, -100, np.int64)
        rows, slots = np.nonzero(batch.masked_lm_weights)
        labels[rows, batch.masked_lm_positions[rows, slots]] = batch.masked_lm_ids[rows, slots]
        arrays = {
            'input_ids': batch.input_ids.astype(np.int64),
            'attention_mask': (batch.sequence_ids > 0).astype(np.int64),
            'labels': labels,
        }
        if self._hub.has_token_types:
            arrays['token_type_ids'] = batch.token_type_ids.astype(np.int64)
        if NSP_HEAD in self._hub.heads:
            arrays['next_sentence_label'] = batch.next_sentence_labels[:, 0].astype(np.int64)
        return {name: self._torch.from_numpy(array) for name, array in arrays.items()}

    def _loss(self, batch: dict):
        return self._model(**batch).loss


class OptimizedTorch(Torch):
    """The optimized model of `torch_bert.py` or `torch_modernbert.py`."""

    def _make(self, tensors: dict):
        from benchmarks import torch_bert, torch_modernbert

        optimized = {'bert': torch_bert.Bert, 'modernbert': torch_modernbert.ModernBert}[self._config.model.family]
        model = optimized(self._config.model, self._config.tokenizer.vocab_size)
        model.load(tensors)
        return model

    def _prepare(self, batch: Batch) -> dict:
        arrays = {
            name: value if name.endswith('weights') else value.astype(np.int64)
            for name, value in batch._asdict().items()
        }
        ids = arrays.pop('sequence_ids')
        if (ids != 1).any():  # padded or packed
            if self._device == 'cuda':
                starts = np.flatnonzero(np.diff(ids, axis=1, prepend=-1).ravel())
                ends = np.full(len(ids) * (1 + batch.cls_positions.shape[1]) + 1, ids.size, np.int32)
                ends[: len(starts)] = starts  # empty sequences make the shape constant
                arrays['ends'], self._longest = ends, ids.shape[1]
            else:
                arrays['mask'] = ((ids[:, :, None] == ids[:, None]) & (ids[:, None] > 0))[:, None]
        return {name: self._torch.from_numpy(array) for name, array in arrays.items()}

    def _loss(self, batch: dict):
        mask, ends = batch.pop('mask', None), batch.pop('ends', None)
        return self._model(batch, mask, None if ends is None else (ends, self._longest))


_ONE_DEVICE = {'data': 1, 'fsdp': 1, 'tensor': 1}
CONTESTANTS: dict[str, Callable[[], object]] = {
    'bert_jax float32': lambda: BertJax('float32'),
    'bert_jax bfloat16': lambda: BertJax('bfloat16'),
    'Hugging Face float32': lambda: HuggingFace('float32'),
    'Hugging Face bfloat16': lambda: HuggingFace('bfloat16'),
    'PyTorch float32': lambda: OptimizedTorch('float32'),
    'PyTorch bfloat16': lambda: OptimizedTorch('bfloat16'),
    'PyTorch float32 compiled': lambda: OptimizedTorch('float32', compiled=True),
    'PyTorch bfloat16 compiled': lambda: OptimizedTorch('bfloat16', compiled=True),
}


def _seconds(run: Callable[[], object], wait: Callable[[], None], at_least: float = 2e-3) -> float:
    run()
    wait()
    start = time.perf_counter()
    run()
    wait()
    repeats = max(1, round(at_least / (time.perf_counter() - start)))
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return (time.perf_counter() - start) / repeats


def main(name: str) -> None:
    if name.startswith('bert_jax'):
        from bert_jax.runtime.devices import select_platform

        select_platform('')  # as the commands do
    contestant = CONTESTANTS[name]()
    answers, sys.stdout = sys.stdout, sys.stderr  # so that prints of libraries are not read as answers
    for line in sys.stdin:
        request, start = json.loads(line), time.perf_counter()
        answer: dict[str, object] = {}
        if 'load' in request:
            contestant.load(Path(request['load']))
            answer['losses'] = contestant.steps(1)
        elif 'steps' in request:
            answer['losses'] = contestant.steps(request['steps'])
        elif 'matmuls' in request:
            answer['matmul_seconds'] = contestant.matmul_seconds()
        answer['seconds'] = time.perf_counter() - start
        answer['peak_flops'] = contestant.peak_flops()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer['peak_bytes'] = contestant.peak_bytes() or resident
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main(sys.argv[1])
