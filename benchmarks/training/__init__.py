"""Rows that train for real: pretrained backbones, real text, several seeds; `python -m benchmarks --long`."""
