#!/usr/bin/env bash
# Measures a machine with one GPU (an H100 or H200, for example) in about ten minutes; see benchmarks/gpu.py:
#
#     make install ACCELERATOR=cuda13 && .venv/bin/pip install -e '.[cuda13,test]' && bash benchmarks/gpu.sh
#
# The tables are in runs/gpu/gpu.md, the numbers in runs/gpu/gpu.json. The same command resumes what is left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
exec "${PYTHON:-.venv/bin/python}" -m benchmarks.gpu "$@"
