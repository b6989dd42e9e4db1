"""Measures encoders: metrics on held-out text (`evaluate.py`), and metrics that do not depend on the tokenizer."""
