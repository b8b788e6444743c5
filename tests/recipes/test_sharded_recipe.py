"""A recipe under `accelerate launch --use_fsdp`, on two CPU processes: sharded, and the same is learned."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from launching import launch_two
from safetensors.torch import load_file
from tiny_workshop import furnish

import adapterlab
from adapterlab.predicting import evaluate

# accelerate has FSDP for accelerators only, while torch has it for CPUs, too: the patch is all that is missing
PROGRAM = """
import adapterlab
from accelerate.state import AcceleratorState, DistributedType, PartialState
from adapterlab.training.callbacks import Narrator

def on_cpu_too(self, *args, fsdp_plugin=None, init=AcceleratorState.__init__, **options):
    init(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin

def see(self, args, state, control, model=None, **_):
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
    assert held < 0.6 * sum(p.numel() for p in model.parameters()), "half of it, and what can't be halved"

AcceleratorState.__init__ = on_cpu_too
Narrator.on_train_begin = see
adapterlab.run("lora.yaml", "run.dir=two/lora", "optim.batch_size=24", "optim.max_steps=3")
adapterlab.run("lora.yaml", "run.dir=two/lora", "optim.batch_size=24", resume="auto")
adapterlab.run("adalora.yaml", "run.dir=two/adalora", "optim.batch_size=24")
"""
ADAPTERS = {
    "lora": {"method": "lora", "r": 4, "dropout": 0.0},
    "adalora": {"method": "adalora", "target_r": 2, "init_r": 4, "dropout": 0.0},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of the runs on two processes, all of one launch: starting takes longest."""
    folder = furnish(tmp_path_factory.mktemp("fsdp"))
    config = json.loads((folder / "model/config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "model/config.json").write_text(json.dumps(config))
    recipe = yaml.safe_load((folder / "tiny.yaml").read_text())
    recipe["model"]["name"] = str(folder / "model")
    recipe["data"] |= {"train": str(folder / "train.csv"), "eval": 0.25}
    del recipe["data"]["test"]
    # all rows in each step: two processes draw them in another order
    recipe["optim"] = {"lr": 1e-2, "batch_size": 48, "max_steps": 6, "schedule": "constant", "precision": "fp32"}
    recipe |= {"eval": {"every": 3, "best": "loss"}, "log": {"plot": False}}
    for name, adapter in ADAPTERS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "adapter": adapter}))
    (folder / "program.py").write_text(PROGRAM)
    how = ("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
    launch_two(folder, "program.py", how=(*how, "--fsdp_state_dict_type", "FULL_STATE_DICT"))
    return folder


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_sharded_run_learns_what_a_whole_one_does(name, ran):
    adapterlab.run(ran / f"{name}.yaml", f"run.dir={ran / 'one' / name}")
    histories = [
        [json.loads(line) for line in (ran / where / name / "metrics.jsonl").read_text().splitlines()]
        for where in ("two", "one")
    ]
    losses = [[row["eval_loss"] for row in rows if "eval_loss" in row] for rows in histories]
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    two_tensors, one_tensors = (
        load_file(ran / where / name / "adapter/adapter_model.safetensors") for where in ("two", "one")
    )
    assert two_tensors.keys() == one_tensors.keys()
    for key, tensor in one_tensors.items():
        torch.testing.assert_close(two_tensors[key], tensor, atol=2e-3, rtol=1e-2)
    assert evaluate(ran / "two" / name)["accuracy"] == evaluate(ran / "one" / name)["accuracy"]
