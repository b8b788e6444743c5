"""Write the fixtures: tiny models with adapters, computed and saved by the `adapters` library (AdapterHub).

Run by hand, in an environment of its own (README.md beside this file); the tests read what it wrote.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers as T
from adapters import AdapterConfig, LoRAConfig, PrefixTuningConfig
from safetensors.torch import save_file

FIXTURES = Path(__file__).parent / "fixtures"
VOCABULARY, HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS, LABELS = 40, 32, 2, 4, 40, 16, 3


def sizes(**extra: Any) -> dict[str, Any]:
    """What most config classes call the sizes."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 1,
        "pad_token_id": 0,
        "num_labels": LABELS,
        **extra,
    }


BACKBONES: dict[str, tuple[type, Any]] = {
    "bert": (T.BertForSequenceClassification, T.BertConfig(**sizes())),
    "roberta": (T.RobertaForSequenceClassification, T.RobertaConfig(**sizes())),
    "electra": (T.ElectraForSequenceClassification, T.ElectraConfig(**sizes(embedding_size=16))),
    "deberta-v2": (
        T.DebertaV2ForSequenceClassification,
        T.DebertaV2Config(
            **sizes(type_vocab_size=0, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8)
        ),
    ),
    "albert": (T.AlbertForSequenceClassification, T.AlbertConfig(**sizes(embedding_size=16))),
    "distilbert": (
        T.DistilBertForSequenceClassification,
        T.DistilBertConfig(
            vocab_size=VOCABULARY, dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=INTERMEDIATE,
            max_position_embeddings=POSITIONS, pad_token_id=0, num_labels=LABELS,
        ),
    ),
    "gpt2": (
        T.GPT2ForSequenceClassification,
        T.GPT2Config(
            vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=INTERMEDIATE,
            n_positions=POSITIONS, pad_token_id=0, num_labels=LABELS,
        ),
    ),
    "llama": (T.LlamaForSequenceClassification, T.LlamaConfig(**sizes(num_key_value_heads=2))),
    "mistral": (T.MistralForSequenceClassification, T.MistralConfig(**sizes(num_key_value_heads=2, head_dim=8))),
    "bart": (
        T.BartForSequenceClassification,
        T.BartConfig(
            vocab_size=VOCABULARY, d_model=HIDDEN, encoder_layers=LAYERS, decoder_layers=LAYERS,
            encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=INTERMEDIATE,
            decoder_ffn_dim=INTERMEDIATE, max_position_embeddings=POSITIONS, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=2, num_labels=LABELS,
        ),
    ),
}  # fmt: skip
ALL_LORA = {"intermediate_lora": True, "output_lora": True, "attn_matrices": ["q", "k", "v"]}
CASES: dict[str, Any] = {
    "double_seq_bn": "double_seq_bn",
    "seq_bn": "seq_bn",
    "seq_bn-layer-1": AdapterConfig.load("seq_bn", leave_out=[0], reduction_factor=4, non_linearity="gelu"),
    "par_bn": AdapterConfig.load("par_bn", reduction_factor=8),
    "scaled_par_bn": AdapterConfig.load("scaled_par_bn", reduction_factor=8),
    "prefix_tuning_flat": PrefixTuningConfig(flat=True, prefix_length=5),
    "prefix_tuning": PrefixTuningConfig(prefix_length=5, bottleneck_size=6),
    "lora": LoRAConfig(r=3, alpha=7),
    "lora-all": LoRAConfig(r=2, alpha=5, dropout=0.1, **ALL_LORA),
}
# What is left out elsewhere: layers that are BERT's or Llama's need no second set of every case; ALBERT and BART are
# computed otherwise there for the other cases, or not at all here.
ONLY = {
    "albert": ("seq_bn", "par_bn", "lora-all", "prefix_tuning_flat"),
    "bart": ("double_seq_bn", "seq_bn", "par_bn", "lora-all"),
    "electra": ("double_seq_bn", "seq_bn", "lora-all"),
    "mistral": ("double_seq_bn", "seq_bn", "prefix_tuning_flat", "lora-all"),
    "roberta": ("double_seq_bn", "seq_bn", "scaled_par_bn", "prefix_tuning_flat", "lora-all"),
}
FLEXIBLE: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (adapters.BertAdapterModel, {"layers": 1, "activation_function": None, "use_pooler": True}),
    "roberta": (adapters.RobertaAdapterModel, {"layers": 2, "activation_function": "tanh"}),
    "distilbert": (adapters.DistilBertAdapterModel, {"layers": 2, "activation_function": "relu"}),
    "electra": (adapters.ElectraAdapterModel, {"layers": 2, "activation_function": "gelu"}),
}


def seeded(module: torch.nn.Module, seed: int, spread: float) -> None:
    """Give every parameter random values, LayerNorms' weights around one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        centre = 1.0 if "norm" in name.lower().replace("ln_", "norm") and name.endswith("weight") else 0.0
        parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))


def backbone(architecture: str) -> Any:
    """Build the same model each time; its weights are halves, so that the file can be."""
    model_class, config = BACKBONES[architecture]
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    seeded(model, 0, 0.15)
    for parameter in model.parameters():
        parameter.copy_(parameter.half().float())
    model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    model.config.label2id = {"bad": 0, "so-so": 1, "good": 2}
    return model


def inputs() -> dict[str, torch.Tensor]:
    """Two rows of six tokens, the second one padded."""
    ids = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))
    ids[0, -1] = ids[1, 3] = 2
    ids[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def states(model: Any, case: str) -> dict[str, torch.Tensor]:
    """Run the model; return all hidden states, per stack, and the logits."""
    out = model(**inputs(), output_hidden_states=True)
    found = {f"{case}/logits": out.logits}
    for key in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        for index, state in enumerate(getattr(out, key, None) or ()):
            if index:  # the first is the embeddings'
                found[f"{case}/{key}.{index}"] = state
    return {key: tensor.contiguous() for key, tensor in found.items()}


def make(architecture: str) -> None:
    """Write one architecture's folder: backbone/, and one folder for each case."""
    folder = FIXTURES / architecture
    model = backbone(architecture)
    (folder / "backbone").mkdir(parents=True)
    model.config.to_json_file(folder / "backbone" / "config.json", use_diff=True)
    save_file({k: v.half() for k, v in model.state_dict().items() if v.is_floating_point()},
              folder / "backbone" / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    results = inputs() | states(model, "backbone")
    for case, config in CASES.items():
        if case not in ONLY.get(architecture, CASES):
            continue
        model = backbone(architecture)
        adapters.init(model)
        model.add_adapter("mine", config=config)
        seeded_adapter(model)
        model.set_active_adapters("mine")
        model.eval()  # the modules that the library puts in place of linears are in training mode
        save(model, folder / case, with_head=case == "seq_bn")
        results |= states(model, case)
    if architecture in FLEXIBLE:
        results |= make_flexible(architecture, folder / "flex-head")
    save_file(results, folder / "states.safetensors")


def save(model: Any, folder: Path, with_head: bool) -> None:
    """Let the library save the adapter.

    It can't write a prefix as safetensors, since its state dict names one tensor several times (once for each
    layer); so that one is saved as it does without safetensors, and the pickle is turned into safetensors.
    """
    prefix = any("prefix_tunings" in name for name, _ in model.named_parameters())
    model.save_adapter(str(folder), "mine", use_safetensors=not prefix, with_head=with_head)
    if prefix:
        pickle = folder / "pytorch_adapter.bin"
        tensors = torch.load(pickle, weights_only=True)
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "adapter.safetensors")
        pickle.unlink()


def seeded_adapter(model: Any) -> None:
    """Give the adapter random weights: an untrained LoRA changes nothing, so it would test nothing."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if ".mine." in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def make_flexible(architecture: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write an adapter with a head of the library's own model classes; return what the model gives."""
    model_class, head = FLEXIBLE[architecture]
    trained = backbone(architecture)
    model = model_class(trained.config).eval()
    model.base_model.load_state_dict(trained.base_model.state_dict(), strict=False)
    model.add_adapter("mine", config="seq_bn")
    model.add_classification_head("mine", num_labels=LABELS, id2label=trained.config.id2label, **head)
    seeded_adapter(model)
    model.set_active_adapters("mine")
    model.eval()
    model.save_adapter(str(folder), "mine", use_safetensors=True)
    return states(model, "flex-head")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    shutil.rmtree(FIXTURES, ignore_errors=True)
    for architecture in BACKBONES:
        make(architecture)
    for file in FIXTURES.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    size = sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file())
    print(json.dumps({"adapters": adapters.__version__, "transformers": T.__version__, "bytes": size}))
