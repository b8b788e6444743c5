"""Identity of a backbone: is this the model that the adapter was trained on?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed, nn

from adapterlab.backbones import Backbone

_SAMPLE = 4096  # elements of each tensor that are looked at
_ROWS = 512  # of the embeddings: the vocabulary may grow
_SCALES = 16  # tensors whose scale is kept
_TOLERANCE = 1e-3  # a cast to fp16 moves a scale by some 1e-5; another training, or another seed, by 1e-2
_EXACT = ("float32", "bfloat16")


def fingerprint(model: nn.Module, backbone: Backbone) -> dict[str, Any] | None:
    """Return what identifies the frozen weights: sizes, a digest, and the scales of some tensors.

    The digest is the SHA-256 of evenly spaced elements of each tensor in the layers and the input embeddings,
    rounded to bfloat16, so that a cast to bfloat16 keeps it. Heads and poolers, which may be fresh, don't count.
    A cast to anything else changes it; the scales (root mean squares) then tell whether it is the same model.

    Returns:
        None where the weights aren't here (meta device, sharded by a launcher).
    """
    samples, shapes = [], []
    dtype = ""
    for path, tensor in _tensors(model, backbone):
        if tensor.is_meta or not tensor.numel() or _is_part(tensor):
            return None
        if not tensor.is_floating_point():
            continue
        flat = tensor.detach().reshape(-1)
        samples.append(flat[:: max(1, len(flat) // _SAMPLE) | 1][:_SAMPLE].float())
        shapes.append(f"{path} {list(tensor.shape)}")
        dtype = dtype or str(tensor.dtype).removeprefix("torch.")
    if not samples:
        return None
    numbers = torch.cat([sample.cpu() for sample in samples]).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    config: Any = model.config
    scaled = samples[:: max(1, len(samples) // _SCALES)][:_SCALES]
    scales = torch.stack([sample.square().mean().sqrt() for sample in scaled])
    return {
        "model_type": backbone.model_type,
        "layers": len(backbone.layers),
        "hidden_size": getattr(config.get_text_config(), "hidden_size", None),
        "dtype": dtype,
        "digest": hashlib.sha256("\n".join(shapes).encode() + numbers).hexdigest(),
        "scales": [float(f"{scale:.6g}") for scale in scales.tolist()],
    }


def _is_part(tensor: torch.Tensor) -> bool:
    if not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two fingerprints are of one model, perhaps in different dtypes."""
    if one.get("digest") == other.get("digest"):
        return True
    sizes = ("model_type", "layers", "hidden_size")
    if any(one.get(key) != other.get(key) for key in sizes):
        return False
    if one.get("dtype") == other.get("dtype") or (one.get("dtype") in _EXACT and other.get("dtype") in _EXACT):
        return False  # the digest would have been the same
    pairs = list(zip(_scales(one), _scales(other), strict=False))
    return bool(pairs) and all(abs(a - b) <= _TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)


def _scales(print_: dict[str, Any]) -> list[float]:
    scales = print_.get("scales")  # from a file: they may be anything
    return scales if isinstance(scales, list) and all(isinstance(scale, float) for scale in scales) else []


def in_words(print_: dict[str, Any]) -> str:
    """Return a fingerprint for people: `bert, 12 layers of 768, weights 3fa94c01`."""
    digest = str(print_.get("digest"))[:8]
    return f"{print_.get('model_type')}, {print_.get('layers')} layers of {print_.get('hidden_size')}, weights {digest}"


def _tensors(model: nn.Module, backbone: Backbone) -> Iterator[tuple[str, torch.Tensor]]:
    base = f"{backbone.base}." if backbone.base else ""
    for layer in backbone.layers:
        for name, parameter in model.get_submodule(layer).named_parameters():
            yield f"{layer.removeprefix(base)}.{name}", parameter
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    weight = getattr(embeddings, "weight", None)
    if isinstance(weight, torch.Tensor):
        yield "embeddings", weight[:_ROWS]
