#!/usr/bin/env bash
# Measures a machine with one H100 or H200, in about ten minutes:
#
#     make install ACCELERATOR=cuda13 && .venv/bin/pip install -e '.[cuda13,test]' && bash benchmarks/gpu.sh | tee gpu.txt
#
# BERT-base and -large at 512 positions, packed, bfloat16, without dropout of attention weights. First bert_jax and
# PyTorch in turns; then, for the same step, the time and memory that `plan` predicts and those measured, with the fused
# attention kernel for packed rows and without it.
# Set SIZES, ROWS_BASE, ROWS_LARGE and LENGTH to run a smaller version, for example to try it without a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
DTYPE=${DTYPE:-bfloat16}
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # several processes share the device

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
timeout 420 "$PYTHON" -m benchmarks.speed --workloads="${WORKLOADS:-base,large}" --turns=5 --budget_seconds=60 \
  --contestants="bert_jax $DTYPE,PyTorch $DTYPE compiled"
unset XLA_PYTHON_CLIENT_PREALLOCATE

for size in ${SIZES:-base large}; do
  rows=$([ "$size" = large ] && echo "${ROWS_LARGE:-32}" || echo "${ROWS_BASE:-64}")
  for attention in auto plain; do
    echo "plan: $size, $rows rows, attention $attention"
    # Plain attention may need more memory than the device has; the output then says so.
    timeout 90 "$PYTHON" -m bert_jax plan --config=configs/bert.py:"$size" --target=here \
      --config.model.dtype="$DTYPE" --config.model.attention="$attention" --config.model.attention_dropout_rate=0.0 \
      --config.data.packing=True --config.data.sequence_length="${LENGTH:-512}" --config.train.global_batch_size="$rows" \
      || [ "$attention" = plain ]
  done
done
