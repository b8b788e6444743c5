"""Adapters trained here, read by the `adapters` library: run by hand, in two environments (README.md beside this file).

`round_trip.py write DIR`, with adapterlab: adapters with random weights on the fixtures' backbones, converted, and
what our models compute. `round_trip.py check DIR`, with the library: load each, compute, compare.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as T
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parent / "fixtures"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "houlsby": ("bottleneck", {"variant": "houlsby", "bottleneck_size": 3}),
    "pfeiffer": ("bottleneck", {"variant": "pfeiffer", "reduction_factor": 4, "layers": [-1]}),
    "pfeiffer-both": ("bottleneck", {"variant": "pfeiffer", "where": ["attention", "ffn"], "scaling": "learned"}),
    "parallel": ("bottleneck", {"variant": "parallel", "activation": "gelu", "leave_out": [0]}),
    "parallel-both": ("bottleneck", {"variant": "parallel", "where": ["attention", "ffn"]}),
    "scaled_parallel": ("bottleneck", {"variant": "scaled_parallel"}),
    "prefix": ("prefix", {"num_virtual_tokens": 4, "preserve_positions": True}),
    "prefix-mlp": ("prefix", {"num_virtual_tokens": 4, "preserve_positions": True, "prefix_projection": True}),
    "lora": ("lora", {"r": 3, "alpha": 5, "use_rslora": True, "target_modules": "attention"}),
    "lora-all": ("lora", {"r": 2, "alpha": 8, "target_modules": "all"}),
}
TARGETS = {
    "bert": (["query", "value"], ["query", "key", "value", "intermediate.dense", "layer.*[0-9].output.dense"]),
    "distilbert": (["q_lin"], ["q_lin", "k_lin", "v_lin", "lin1", "lin2"]),
    "deberta-v2": (["query_proj", "value_proj"], ["value_proj", "intermediate.dense"]),
    "gpt2": (["c_attn"], ["c_attn", "c_fc", "mlp.c_proj"]),
    "llama": (["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]),
    "albert": (["query"], ["query", "key", "value", "ffn", "ffn_output"]),
    "bart": (["q_proj"], ["q_proj", "k_proj", "v_proj", "fc1", "fc2"]),
}


def backbone(architecture: str) -> Any:
    """Return a fixture's backbone."""
    config = T.AutoConfig.from_pretrained(FIXTURES / architecture / "backbone")
    config._name_or_path = ""
    model = T.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    weights = load_file(FIXTURES / architecture / "backbone" / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    return model


def states(model: Any, architecture: str) -> dict[str, torch.Tensor]:
    """Run the model on the fixture's inputs; return hidden states and logits."""
    given = load_file(FIXTURES / architecture / "states.safetensors")
    out = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], output_hidden_states=True)
    found = {"logits": out.logits}
    for key in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        found |= {f"{key}.{index}": state for index, state in enumerate(getattr(out, key, None) or ())}
    return {key: tensor.contiguous() for key, tensor in found.items()}


def write(folder: Path) -> None:
    """Write the adapters that both sides can have, and say which were refused."""
    import adapterlab

    for architecture, targets in TARGETS.items():
        for case, (method, options) in CASES.items():
            model = backbone(architecture)
            options = dict(options)
            if method == "lora":
                options["target_modules"] = targets[0 if options["target_modules"] == "attention" else 1]
            target = folder / architecture / case
            try:
                adapterlab.attach(model, method, **options)
                generator = torch.Generator().manual_seed(3)
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
                adapterlab.save(model.eval(), folder / "ours" / architecture / case)
                adapterlab.convert(folder / "ours" / architecture / case, target, name="mine")
            except adapterlab.AdapterLabError as error:
                print(f"{architecture} {case}: refused: {error}")
                continue
            save_file(states(model, architecture), target / "states.safetensors")


def check(folder: Path) -> None:
    """Load each adapter as the library does, and print how far its results are from ours."""
    import adapters

    worst = 0.0
    for path in sorted(folder.glob("*/*/adapter.safetensors")):
        architecture, case = path.parent.parent.name, path.parent.name
        model = backbone(architecture)
        adapters.init(model)
        info: dict[str, Any] = {}
        model.load_adapter(str(path.parent), load_as="other", set_active=True, use_safetensors=True, loading_info=info)
        missing = [key for key in info["missing_keys"] if ".prefix_tuning.pool." not in key]
        theirs, ours = states(model.eval(), architecture), load_file(path.parent / "states.safetensors")
        difference = max(float((theirs[key] - ours[key]).abs().max()) for key in ours)
        worst = max(worst, difference)
        print(f"{architecture} {case}: {difference:.1e}", json.dumps({"missing": missing, **_unexpected(info)}))
    print(f"worst: {worst:.1e}")
    sys.exit(worst > 1e-5)


def _unexpected(info: dict[str, Any]) -> dict[str, Any]:
    return {"unexpected": info["unexpected_keys"]} if info.get("unexpected_keys") else {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
