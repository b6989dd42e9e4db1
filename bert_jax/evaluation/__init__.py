"""How good an encoder is: on held-out text (`evaluate.py`), and by measures that do not depend on its tokenizer."""
