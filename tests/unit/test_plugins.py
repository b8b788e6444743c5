"""Methods from outside: an installed distribution, plugins that are broken, and what `register_method` refuses."""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import transformers
from conftest import CONFIGS, VOCABULARY, randomize
from datasets import Dataset
from pydantic import Field
from safetensors.torch import load_file
from typer.testing import CliRunner

import adapterlab
from adapterlab.adapters import METHODS, Method, MethodConfig, register_method
from adapterlab.cli.app import app

EXAMPLE = Path(__file__).parents[1] / "plugin"
three = pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the example distribution."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(EXAMPLE)], check=True, capture_output=True)
    return folder


def as_if_just_started(patch, *folders):
    """Let this process find the plugins in these folders as a fresh one would; undone with `patch`."""
    for folder in folders:
        patch.syspath_prepend(str(folder))
    own = {
        name: method for name, method in METHODS.so_far().items() if type(method).__module__.startswith("adapterlab.")
    }
    fresh = {"_entries": own, "_aliases": dict(METHODS._aliases), "_loaded": False, "failures": {}}
    for attribute, value in fresh.items():
        patch.setattr(METHODS, attribute, value)


@pytest.fixture(scope="module")
def plugin(site):
    with pytest.MonkeyPatch.context() as patch:
        as_if_just_started(patch, site)
        yield
        gc.collect()  # no model with this method may outlive it
    del sys.modules["adapterlab_output_scale"]


def call(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


# --- the example, in Python


@three
def test_it_attaches_trains_and_detaches(plugin, tiny, logits, train, architecture):
    model = tiny(architecture)
    state, backbone = copy.deepcopy(model.state_dict()), logits(model)
    adapterlab.attach(model, "output_scale")
    assert torch.equal(logits(model), backbone), "g starts at zero"
    assert adapterlab.summary(model).adapters[0].parameters > 0
    losses = train(model, steps=10)
    assert losses[-1] < losses[0]
    trained = logits(model)
    assert not torch.equal(trained, backbone)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
    twin = copy.deepcopy(model)
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(logits(twin), trained)


@three
def test_it_is_saved_and_loaded(plugin, tiny, logits, tmp_path, architecture):
    model = adapterlab.attach(tiny(architecture), "output_scale", layers=[-1], limit=2.0)
    randomize(model)
    folder = adapterlab.save(model, tmp_path)
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "OUTPUT_SCALE"
    fresh = adapterlab.load(tiny(architecture), folder)
    assert torch.equal(logits(fresh), logits(model))
    assert adapterlab.summary(fresh).adapters[0].options == adapterlab.summary(model).adapters[0].options


@three
def test_it_is_merged_into_a_plain_model(plugin, tiny, logits, tmp_path, architecture):
    model = adapterlab.attach(tiny(architecture), "output_scale")
    randomize(model)
    expected = logits(model)
    assert adapterlab.merge(model) is model
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert model.state_dict().keys() == tiny(architecture).state_dict().keys()
    model.save_pretrained(tmp_path)
    plain = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-5)


def test_it_lives_beside_other_adapters(plugin, tiny, logits):
    model = tiny("bert")
    backbone, outputs = logits(model), {}
    for name, method in (("a", "output_scale"), ("b", "lora"), ("c", "output_scale")):
        adapterlab.attach(model, method, name)
        randomize(model, seed=len(outputs), std=0.1)
        outputs[name] = logits(model)
    for name, output in outputs.items():
        adapterlab.activate(model, name)
        assert torch.equal(logits(model), output), name
    adapterlab.detach(model, "a")
    adapterlab.activate(model, "c")
    assert torch.equal(logits(model), outputs["c"])
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)


@pytest.mark.parametrize("loop", ["plain", "trainer"])
def test_its_step_hook_runs_in_every_loop(plugin, tiny, train, tmp_path, loop, monkeypatch):
    calls = []
    cls = type(METHODS.get("output_scale"))
    step = cls.on_train_step
    monkeypatch.setattr(cls, "on_train_step", lambda *arguments: (calls.append(arguments[2]), step(*arguments)))
    model = adapterlab.attach(tiny("bert"), "output_scale", limit=0.015)
    if loop == "plain":
        train(model, steps=6, lr=1e-2)
    else:
        ids = torch.randint(3, VOCABULARY, (48, 8), generator=torch.Generator().manual_seed(4))
        rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 0] % 3).tolist()})
        settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
        arguments = transformers.TrainingArguments(str(tmp_path), num_train_epochs=1, **settings, **quiet)
        transformers.Trainer(model, arguments, train_dataset=rows).train()
    assert calls == ["default"] * 6, "once for each optimizer step"
    largest = max(p.abs().max().item() for name, p in model.named_parameters() if "output_scale" in name)
    assert largest == pytest.approx(0.015), "six steps of 0.01 would have gone further"


# --- the example, on the command line and in recipes


def test_it_is_listed_and_described(plugin):
    output = " ".join(call("methods").output.split())
    assert "output_scale" in output
    assert "a learned scale of each output feature of the linears" in output
    assert "failed" not in output
    # as words: datasets' map in several processes puts a copy in place of os.environ, and rich, which holds on to the
    # first, then no longer sees COLUMNS and breaks the lines
    output = " ".join(call("methods", "output_scale").output.split())
    for part in ("limit", "0.5", "g stays within -limit and limit", "target_modules", "IA3"):
        assert part in output, output
    assert {info.name for info in adapterlab.methods()} >= {"output_scale", "lora"}


def test_the_schema_and_the_errors_know_it(plugin, tiny):
    adapter = json.loads(call("schema").stdout)["$defs"]["AdapterSection"]
    assert "output_scale" in adapter["properties"]["method"]["enum"]
    rule = next(rule for rule in adapter["allOf"] if rule["if"]["properties"]["method"]["enum"] == ["output_scale"])
    assert rule["then"]["properties"]["limit"]["exclusiveMinimum"] == 0
    said = call("validate", "quickstart", "adapter.method=ouput_scale").stderr
    assert "Did you mean 'output_scale'?" in said
    said = call("validate", "quickstart", "adapter.method=output_scale", "adapter.limt=1").stderr
    assert "adapter.limt: method 'output_scale' has no such option. Did you mean 'limit'?" in said
    with pytest.raises(adapterlab.AdapterLabError, match=r"limit: .*greater than 0"):
        adapterlab.attach(tiny("bert"), "output_scale", limit=0.0)


def test_the_page_about_plugins_shows_the_example_as_it_is():
    page = (EXAMPLE.parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    for file, language in (("adapterlab_output_scale.py", "python"), ("pyproject.toml", "toml")):
        assert f"```{language}\n{(EXAMPLE / file).read_text(encoding='utf-8')}```" in page, file


# --- plugins that are broken

GOOD = """
from adapterlab.adapters import METHODS, Method, MethodConfig, register_method
class Config(MethodConfig): ...
class Mine(Method):
    summary, Config, peft_type, marker = "mine", Config, "MINE", "mine_mark_"
    inject = remove = activate = to_peft = from_peft = lambda *_: None
"""
BROKEN = {
    "absent": (None, "ModuleNotFoundError: No module named 'broken_absent'"),
    "needy": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "typo": ("def f(:", "SyntaxError: invalid syntax"),
    "leaver": ("raise SystemExit(3)", "SystemExit: 3"),
    "halter": ("class Halt(BaseException): ...\nraise Halt('two [/red]\\nlines')", "Halt: two [/red] lines"),
    "thief": (GOOD + "register_method('lora')(Mine)", "ConfigError: method 'lora' is registered already"),
    "alias": (GOOD + "register_method('mine', aliases=('prefix',))(Mine)", "method 'prefix' is registered already"),
    "other": (GOOD + "register_method('other')(Config)", "a subclass of adapterlab.adapters.Method is needed"),
    "empty": (GOOD + "Mine.summary = ''\nregister_method('mine')(Mine)", "summary is missing"),
    "idle": ("", "importing broken_idle registered no method"),
    "half": (GOOD + "register_method('half-done')(Mine)\n1 / 0", "ZeroDivisionError: division by zero"),
}


@pytest.fixture
def broken(tmp_path):
    """A folder with an installed distribution for each way to be broken."""
    for name, (source, _) in BROKEN.items():
        info = tmp_path / f"adapterlab_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: adapterlab-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[adapterlab.methods]\n{name}-plugin = broken_{name}\n")
        if source is not None:
            (tmp_path / f"broken_{name}.py").write_text(source)
    yield tmp_path
    for module in [module for module in sys.modules if module.startswith("broken_")]:
        del sys.modules[module]


def test_broken_plugins_are_named_and_break_nothing_else(broken, site, monkeypatch, tiny, train):
    as_if_just_started(monkeypatch, broken, site)
    own = list(METHODS.so_far())
    monkeypatch.delitem(sys.modules, "adapterlab_output_scale", raising=False)
    listed = call("methods").stdout
    assert METHODS.names() == [*own, "output_scale"], "what works is there; what failed half-way adds nothing"
    assert type(METHODS.get("lora")).__module__.startswith("adapterlab.")
    losses = train(adapterlab.attach(tiny("bert"), "lora"), steps=5)
    assert losses[-1] < losses[0]
    with pytest.raises(adapterlab.AdapterLabError) as caught:
        adapterlab.attach(tiny("bert"), "half-done")
    said = " ".join(call("validate", "quickstart", "adapter.method=mine").stderr.split())
    for name, (_, why) in BROKEN.items():
        [line] = [line for line in listed.splitlines() if f"{name}-plugin" in line]
        assert line.startswith(f"plugin {name}-plugin (adapterlab-{name} 1.2) failed: ")
        assert why in line
        for text in (str(caught.value), said):
            told = text.partition(f"plugin '{name}-plugin (adapterlab-{name} 1.2)' failed: ")[2]
            assert why in told


def test_a_recipe_trains_it_in_a_process_of_its_own(broken, site, tmp_path):
    """It knows nothing but what pip has installed, and there are broken plugins beside it."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\nfilm")
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    config = CONFIGS["bert"]()
    config.initializer_range = 0.3  # so that a backbone without training tells texts apart
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    lines = [f"{'good' if i % 2 else 'bad'} film {i},{'pos' if i % 2 else 'neg'}" for i in range(60)]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(lines))
    (tmp_path / "small.yaml").write_text(
        "version: 1\n"
        "model: {name: bert}\n"
        "adapter: {method: output_scale, limit: 0.8, layers: [0, -1]}\n"
        "task: {type: classification, metrics: [accuracy]}\n"
        "data: {train: train.csv, eval: 0.2, max_length: 16}\n"
        "optim: {lr: 3e-2, batch_size: 8, epochs: 6, precision: fp32}\n"
        "log: {plot: false}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(broken), str(site)])}
    command = [sys.executable, "-m", "adapterlab", "train", "small.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "output_scale adapter" in done.stderr
    run = tmp_path / "runs" / "small"
    assert "output_scale" in (run / "report.md").read_text()
    best = max(json.loads(line).get("eval_accuracy", 0) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert best == 1.0
    fields = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["limit"], fields["layers"]) == ("OUTPUT_SCALE", 0.8, [0, -1])
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in tensors.items() if name.endswith("output_scale"))
    assert sum(name.endswith("output_scale") for name in tensors) == 12


def test_an_interrupt_while_plugins_load_goes_through(tmp_path, monkeypatch):
    (tmp_path / "slow-1.dist-info").mkdir()
    (tmp_path / "slow-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (tmp_path / "slow-1.dist-info" / "entry_points.txt").write_text("[adapterlab.methods]\nslow = broken_slow\n")
    (tmp_path / "broken_slow.py").write_text("raise KeyboardInterrupt")
    as_if_just_started(monkeypatch, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        adapterlab.methods()


# --- what register_method refuses


class Options(MethodConfig):
    size: int = Field(ge=1, description="how large")
    kind: Literal["a", "b"] = Field("a", description="which")


def a_method(*bases, **parts):
    """A class that can be registered, but for `parts`; one that is None is left out."""
    names = ("inject", "remove", "activate", "to_peft", "from_peft")
    known = {"summary": "mine", "Config": Options, "peft_type": "MINE", "marker": "mine_mark_"}
    body = {**known, **dict.fromkeys(names, lambda *_: None), **parts}
    return type("Mine", bases or (Method,), {key: value for key, value in body.items() if value is not None})


def with_option(annotation, name="size", default=1, **field):
    return type("Odd", (MethodConfig,), {"__annotations__": {name: annotation}, name: Field(default, **field)})


@pytest.fixture
def registry(monkeypatch):
    as_if_just_started(monkeypatch)
    return METHODS


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (dict, "a subclass of adapterlab.adapters.Method is needed, and the class dict was given"),
        (lambda: 1, "a subclass of adapterlab.adapters.Method is needed, and a function was given"),
        (a_method(inject=None, to_peft=None), "it lacks inject, to_peft"),
        (a_method(summary=None), "summary is missing: one line"),
        (a_method(summary="two\nlines"), "summary is missing: one line"),
        (a_method(Config=None), "Config must be a subclass of .*MethodConfig with the options, and is None"),
        (a_method(Config=dict), "Config must be a subclass"),
        (a_method(Config=with_option(Callable, default=None)), "Config has an option that a recipe can't hold: "),
        (a_method(Config=with_option(Options, default=None)), "can't hold: Options is a class of its own"),
        (a_method(Config=with_option(int, "labels")), "an option can't be called 'labels'"),
        (a_method(Config=with_option(int, validation_alias="name")), "an option can't be called 'name'"),
        (a_method(peft_type=None), "peft_type is missing"),
        (a_method(marker=None), "marker is missing: the part of a parameter's path"),
        (a_method(marker=""), "marker is missing"),
        (a_method(marker="a.b"), "marker is missing: .*without dots"),
        (a_method(marker="lay"), "the marker 'lay' is how 'layer' begins, which backbones have"),
        (a_method(marker="lora_mine"), "the marker 'lora_mine' collides with 'lora_' of method"),
        (a_method(marker="bottle"), "the marker 'bottle' collides with 'bottleneck_adapter' of method 'bottleneck'"),
        (a_method(merges=True), "merges is true and there is no merge"),
        (a_method(paper=2023), "paper must be text"),
        (a_method(__init__=lambda self, size: None), "it can't be made without arguments"),
    ],
)
def test_a_class_that_is_no_method(registry, cls, message):
    before = registry.names()
    with pytest.raises(adapterlab.AdapterLabError, match=f"method 'mine'.*{message}"):
        register_method("mine")(cls)
    assert registry.names() == before


def test_all_that_is_missing_is_named_at_once(registry):
    with pytest.raises(adapterlab.AdapterLabError) as caught:
        register_method("mine")(a_method(summary=None, peft_type=None, marker=None, remove=None))
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("name", ["", "two words", "a/b", "9", "né"])
def test_a_name_that_cannot_be_typed(registry, name):
    with pytest.raises(adapterlab.AdapterLabError, match="a letter, then letters, digits"):
        register_method(name)(a_method())


def test_slips_with_the_decorator(registry):
    with pytest.raises(adapterlab.AdapterLabError, match=r"@register_method\('my-method'\)"):
        register_method(a_method())
    with pytest.raises(adapterlab.AdapterLabError, match=r"aliases must be a tuple of names, \('mn',\)"):
        register_method("mine", aliases="mn")(a_method())
    with pytest.raises(adapterlab.AdapterLabError, match="method 'adapter' is registered already"):
        register_method("adapter")(a_method())


def test_a_cell_that_runs_twice_registers_its_method_anew(registry, tiny):
    register_method("mine", aliases=("my",))(a_method(summary="first"))
    second = register_method("mine", aliases=("my",))(a_method(summary="second"))
    assert type(registry.get("my")) is second
    other = a_method(summary="of another module")
    other.__module__ = "elsewhere"
    with pytest.raises(adapterlab.AdapterLabError, match="method 'mine' is registered already"):
        register_method("mine")(other)


def test_a_method_of_a_family_may_share_its_marker(registry):
    register_method("lora-mine")(a_method(type(METHODS.get("lora")), marker="lora_"))
    assert "lora-mine" in registry


def test_an_option_without_a_default_is_shown_as_required(registry):
    register_method("mine")(a_method())
    assert "required" in call("methods", "mine").output
    with pytest.raises(adapterlab.AdapterLabError, match="size: Field required"):
        adapterlab.adapters.parse_config("mine", {})
