"""Models on two processes, shared out by `fully_shard` or under DDP: the same is learned, what is saved is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import adapterlab

CASES = {
    "bert-lora": ("bert", {"method": "lora", "r": 4, "dropout": 0.0}),
    "gpt2-lora": ("gpt2", {"method": "lora", "r": 4, "dropout": 0.0}),
    "bert-dora": ("bert", {"method": "lora", "r": 4, "dropout": 0.0, "use_dora": True, "bias": "all"}),
    "bert-adalora": ("bert", {"method": "adalora", "target_r": 2, "init_r": 4, "dropout": 0.0, "total_step": 6}),
    "gpt2-prefix": ("gpt2", {"method": "prefix"}),
    "bert-bottleneck": ("bert", {"method": "bottleneck", "dropout": 0.0}),
}
FAST = ("bert-lora", "gpt2-lora", "bert-adalora")
STEPS = 6
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from adapterlab.errors import AdapterError
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from adapterlab.adapters import lora_layer
sys.path.insert(0, sys.argv[1])
from test_sharded import CASES, FAST, train

distributed.init_process_group("gloo")
mesh, rank = init_device_mesh("cpu", (2,)), distributed.get_rank()

def shard(model):
    for layer in model.base_model.h if hasattr(model.base_model, "h") else model.base_model.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

def flatten(model):
    owner = model.base_model
    owner.encoder = FullyShardedDataParallel(owner.encoder, use_orig_params=True, device_id=torch.device("cpu"))

fast, calls = lora_layer.lora_linear, []
lora_layer.lora_linear = lambda *args: calls.append(1) or fast(*args)

def share(case, name, how, where):
    calls.clear()
    losses = torch.tensor(train(case, Path.cwd(), where, how, slice(2 * rank, 2 * rank + 2)))
    assert bool(calls) == (case in FAST), "linears that can are computed in one function"
    distributed.all_reduce(losses)
    if rank == 0:
        Path(f"{name}-{case}.json").write_text(json.dumps((losses / 2).tolist()))

for case in CASES:
    share(case, "two", shard, "two")
for case in FAST:
    share(case, "ddp", DistributedDataParallel, f"ddp{rank}")
try:
    train("bert-lora", Path.cwd(), "old", flatten)
except AdapterError as error:
    Path(f"old-{rank}.txt").write_text(str(error))
distributed.barrier()
distributed.destroy_process_group()
"""


def train(case, folder, where, shard=None, rows=slice(None)):
    """Train a case's model on rows of the batch and save its adapter; returns the loss of each step."""
    architecture, options = CASES[case]
    model = AutoModelForSequenceClassification.from_pretrained(folder / architecture, **NO_DROPOUT[architecture])
    torch.manual_seed(0)
    adapterlab.attach(model.train(), **options)
    runner = (shard(model) if shard else None) or model  # DDP wraps it
    batch = {key: tensor[rows] for key, tensor in load_file(folder / "batch.safetensors").items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = runner(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        model.eval()(**batch)  # which leaves the last part of a sharded model gathered
    adapterlab.save(model, folder / f"{where}-{case}")
    return losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture
def trained(folder, tiny, batch):
    """The folder with the adapters that two processes trained, all in one launch: starting takes longest."""
    if not (folder / "batch.safetensors").exists():
        for architecture in NO_DROPOUT:
            tiny(architecture).save_pretrained(folder / architecture)
        save_file(batch, folder / "batch.safetensors")
        (folder / "program.py").write_text(PROGRAM)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*launch, "program.py", str(Path(__file__).parent)], cwd=folder, capture_output=True, text=True,
            check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_that_hold_half_of_everything_learn_what_one_does(case, trained):
    losses = train(case, trained, "one")
    assert losses[-1] < losses[0] - 0.05
    assert json.loads((trained / f"two-{case}.json").read_text()) == pytest.approx(losses, rel=1e-4)
    one, two = (load_file(trained / f"{where}-{case}" / "adapter_model.safetensors") for where in ("one", "two"))
    assert {key: t.shape for key, t in two.items()} == {key: t.shape for key, t in one.items()}
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, atol=2e-3, rtol=1e-2)
    for file in ("adapter_config.json", "adapterlab.json"):
        one, two = (json.loads((trained / f"{where}-{case}" / file).read_text()) for where in ("one", "two"))
        assert two == one


@pytest.mark.parametrize("case", FAST)
def test_two_processes_that_hold_all_learn_what_one_does(case, trained):
    losses = train(case, trained, "alone")
    assert json.loads((trained / f"ddp-{case}.json").read_text()) == pytest.approx(losses, rel=1e-4)
    alone, first, second = (
        load_file(trained / f"{where}-{case}" / "adapter_model.safetensors") for where in ("alone", "ddp0", "ddp1")
    )
    for key, tensor in alone.items():
        torch.testing.assert_close(first[key], tensor, atol=2e-3, rtol=1e-2)
        assert torch.equal(first[key], second[key])


def test_the_older_way_of_sharding_is_refused(trained):
    for rank in (0, 1):
        assert "Take FSDP 2: torch.distributed.fsdp.fully_shard" in (trained / f"old-{rank}.txt").read_text()
    assert not (trained / "old-bert-lora").exists()
