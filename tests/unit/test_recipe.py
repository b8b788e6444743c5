"""Recipes: the strict YAML reader, the schema's errors, overrides, the catalogue, and writing a recipe back."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterlab.errors import ConfigError
from adapterlab.recipe import Recipe, RecipeNote, catalog, dump_recipe, load_recipe, strict_yaml
from adapterlab.recipe.json_schema import json_schema

GOOD = """\
version: 1
model: {name: bert-base-uncased}
adapter: {method: lora, r: 4}
task: {type: classification, metrics: [f1, accuracy]}
data:
  train: train.csv
  columns: {label: stars}
optim: {lr: 1e-4}
"""


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "reviews.yaml"
    path.write_text(GOOD)
    return path


def problems(source: Any, *overrides: str) -> list[str]:
    """Return the problems of a recipe that must have some."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(source, overrides)
    return caught.value.problems


# --- the YAML reader


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5e3", 5000.0),
        (".5", 0.5),
        ("-3", -3),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("12:30", "12:30"),
        ("2026-01-02", "2026-01-02"),
        ("1_000", "1_000"),
        ("9" * 5000, "9" * 5000),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    parsed = strict_yaml.parse(f"key: {text}\n").value["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_lines_of_keys_and_items_are_known() -> None:
    document = strict_yaml.parse("a:\n  b: 1\n  c:\n    - x\n    - y\n")
    assert document.value == {"a": {"b": 1, "c": ["x", "y"]}}
    assert document.lines == {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 5}


def test_aliases_are_copied_not_shared() -> None:
    value = strict_yaml.parse("a: &x {k: [1]}\nb: *x\n").value
    value["b"]["k"].append(2)
    assert value["a"] == {"k": [1]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: !!python/object/apply:os.system [ls]", r"f\.yaml:1: the tag !!python/object/apply:os\.system is refused"),
        ("a: 1\nb: !secret x", r"f\.yaml:2: the tag !secret is refused"),
        ("a: [1, 2", r"f\.yaml:1: not valid YAML.*list \[ is opened and never closed"),
        ("a: [", r"not valid YAML.*never closed"),
        ("a: 'x", r"a quote is opened and never closed"),
        ("a:\n\tb: 1", r"f\.yaml:2: .*indent with spaces, not tabs"),
        ("a: b: c", r"put a value that holds \": \" in quotes"),
        ("a: *x", r"alias \*x has no anchor above it"),
        ("a: &x [*x]", r"alias \*x refers to what it stands in"),
        ("---\na: 1\n---\nb: 1", r"f\.yaml:3: a second document"),
        ("? [a]\n: b", r"a key must be plain text"),
        ("a: 1\nb: \x00", r"f\.yaml:2: .*control character"),
        ("[" * 3000, r"nested more than 50 levels deep"),
        ("{a: " * 3000, r"nested more than 50 levels deep"),
        ("a: [" + "1," * 30_000 + "]", r"more than 20000 values"),
        ("#" * (1 << 21), r"larger than 1 MiB"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        strict_yaml.parse(text, "f.yaml")


def test_a_bomb_of_aliases_is_refused_before_it_unfolds() -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match="aliases counted as often as used"):
        strict_yaml.parse("\n".join(lines))


@settings(deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.sampled_from(["no", "1e-4", "12:30", "~", "0x1F", "<<", "a: b", "# x", "- x", "", " x ", "1_000"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert strict_yaml.parse(strict_yaml.dump({"key": value})).value == {"key": value}


# --- loading


def test_a_recipe_is_loaded_with_its_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.optim.lr == 1e-4
    assert recipe.optim.epochs == 3
    assert recipe.adapter.method == "lora"
    assert recipe.adapter.options() == {"r": 4}
    assert recipe.data.eval == 0.1
    assert recipe.data.columns == {"label": "stars"}
    assert recipe.run.dir == "runs/reviews"


def test_a_recipe_may_be_a_dict_with_paths_or_a_recipe(recipe_file: Path) -> None:
    parsed = strict_yaml.parse(GOOD).value
    parsed["data"]["train"] = Path("data") / "train.csv"
    parsed["run"] = {"dir": Path("out")}
    recipe = load_recipe(parsed)
    assert (recipe.data.train, recipe.run.dir) == ("data/train.csv", "out")
    assert load_recipe(recipe) == recipe
    assert load_recipe(recipe, ["run.seed=7"]).run.seed == 7
    assert load_recipe(strict_yaml.parse(GOOD).value).run.dir == "runs/classification-lora"


def test_a_section_with_nothing_in_it_is_all_defaults(recipe_file: Path) -> None:
    recipe_file.write_text(GOOD + "eval:\n  # best: f1\nlog:\n")
    assert load_recipe(recipe_file).log.plot is True


def test_every_problem_is_told_at_once_with_its_line_and_key(recipe_file: Path) -> None:
    recipe_file.write_text(
        "version: 1\n"
        "model: {name: 12}\n"
        "adapter: {method: lora, rr: 3, r: 0}\n"
        "task: {type: clasification, metrics: [acuracy]}\n"
        "data:\n"
        "  train: a.csv\n"
        "  eval: 1.5\n"
        "  bad_rows: dorp\n"
        "optim:\n"
        "  lrr: 1\n"
        "  learning_rate: 1e-4\n"
        "  max_length: 64\n"
        "  epochs: yes\n"
        "  epochs: 2\n"
        "optm: {}\n"
    )
    told = problems(recipe_file)
    for expected in (
        r"reviews\.yaml:2: model\.name: must be text, got 12; put it in quotes: '12'",
        r"reviews\.yaml:3: adapter\.rr: .*no such option.*Did you mean 'r'\?",
        r"reviews\.yaml:3: adapter\.r: .*greater than or equal to 1",
        r"reviews\.yaml:4: task\.type: unknown task.* 'clasification'\. Did you mean 'classification'\?",
        r"reviews\.yaml:4: task\.metrics\[0\]: unknown metric 'acuracy'\. Did you mean 'accuracy'\?",
        r"reviews\.yaml:7: data\.eval: must be a share of train between 0 and 1 .*got 1\.5",
        r"reviews\.yaml:8: data\.bad_rows: must be refuse or drop, got 'dorp'\. Did you mean 'drop'\?",
        r"reviews\.yaml:9: optim\.lr: is missing\..*For example `lr: 5e-4`",
        r"reviews\.yaml:10: optim\.lrr: unknown key\. Did you mean 'lr'\?",
        r"reviews\.yaml:11: optim\.learning_rate: unknown key\. Here it is called 'lr'",
        r"reviews\.yaml:12: optim\.max_length: unknown key\. Its place is data\.max_length",
        r"reviews\.yaml:14: optim\.epochs: given twice \(first on line 13\)",
        r"reviews\.yaml:15: optm: unknown key\. Did you mean 'optim'\?",
    ):
        assert any(re.fullmatch(f"{expected}.*", problem) for problem in told), (expected, told)
    assert len(told) == 13
    lines = [int(re.match(r"reviews\.yaml:(\d+)", problem)[1]) for problem in told]  # type: ignore[index]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lr=-1", "override optim.lr: must be greater than 0, got -1."),
        ("optim.lr=.inf", "override optim.lr: must be a finite number, got inf."),
        ("optim.batch_size=2.5", "override optim.batch_size: must be a whole number, got 2.5."),
        ("optim.batch_size=true", "override optim.batch_size: must be a whole number, got true."),
        ("log.plot=yes", "override log.plot: must be true or false, got 'yes'."),
        ("task.metrics=f1", "override task.metrics: must be a list, got 'f1'; write [f1]."),
        ("optim=3", "override optim: must be a section of `key: value` lines, got 3."),
        ("data.labels=[a]", "override data.labels: must hold at least 2 item(s), got 1."),
        ("data.labels=[a, a]", "override data.labels: names a label twice; got ['a', 'a']."),
        ("model.name=", "override model.name: must be text, got nothing."),
        ("version=2", "override version: must be 1, got 2."),
        ("eval.best=mcc", "override eval.best: 'mcc' is not measured. Measured: f1, accuracy, loss."),
        ("data.train.x=1", "override data.train.x: 'train' is the value 'train.csv', not a section."),
        ("optim.lr", "override 'optim.lr': write it as key=value, for example optim.lr=1e-4."),
        ("data.columns={a: b, a: c}", "override data.columns: a given twice (first on line 1); keep one of them."),
    ],
)
def test_wrong_values_are_worded_for_their_author(recipe_file: Path, override: str, told: str) -> None:
    assert told in problems(recipe_file, override)


def test_the_best_state_may_be_the_one_with_the_least_loss(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["eval.best=loss"]).eval.best == "loss"
    assert "Did you mean 'loss'?" in problems(recipe_file, "eval.best=los")[0]


def test_shares_that_leave_no_training_rows_are_refused(recipe_file: Path) -> None:
    (told,) = problems(recipe_file, "data.eval=0.5", "data.test=0.5")
    assert "data: eval and test take 0.5 + 0.5 of train, which leaves no rows." in told


def test_an_input_that_the_task_does_not_have_is_named(recipe_file: Path) -> None:
    (told,) = problems(recipe_file, "data.columns.txet=body")
    assert told.startswith("override data.columns.txet: a classification task has no such input")
    assert "Did you mean 'text'?" in told


def test_missing_sections_say_what_they_need() -> None:
    told = problems({"version": 1})
    assert "optim: the section is missing; it needs at least lr." in told
    assert len(told) == 5


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"hello", b"- a\n", b"a: \xe9\n"])
def test_a_file_that_is_no_recipe_is_refused(recipe_file: Path, content: bytes) -> None:
    recipe_file.write_bytes(content)
    (told,) = problems(recipe_file)
    assert told.startswith("reviews.yaml")


# --- overrides


def test_overrides_follow_the_rules_of_the_yaml(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "optim.lr=2e-5",
            "data.labels=[no, yes, 3]",
            "data.columns.text=body text",
            "data.test=",
            "run.dir=2024",
            "model.name=C: drive",
            "eval={every: 10, best: accuracy}",
            'description="quoted"',
            "optim.lr=3e-5",
        ],
    )
    assert recipe.optim.lr == 3e-5  # the last one wins, as on any command line
    assert recipe.data.labels == ["no", "yes", "3"]
    assert recipe.data.columns == {"label": "stars", "text": "body text"}
    assert recipe.data.test is None
    assert recipe.run.dir == "2024"
    assert recipe.model.name == "C: drive"
    assert (recipe.eval.every, recipe.eval.best) == (10, "accuracy")
    assert recipe.description == "quoted"


def test_unknown_override_keys_are_told_with_the_nearest(recipe_file: Path) -> None:
    told = problems(recipe_file, "optim.lrr=1", "optm.lr=1", "lr=1", "adapter.alhpa=1")
    assert any(re.match(r"override optim\.lrr: unknown key\. Did you mean 'lr'\?", text) for text in told)
    assert any(re.match(r"override optm: unknown key\. Did you mean 'optim'\?", text) for text in told)
    assert any(re.match(r"override lr: unknown section\. Write optim\.lr\.", text) for text in told)
    assert any(re.match(r"override adapter\.alhpa: .*Did you mean 'alpha'\?", text) for text in told)
    assert len(told) == 4


def test_another_method_starts_from_its_own_defaults(recipe_file: Path) -> None:
    with pytest.warns(RecipeNote, match=r"left out r, which the recipe gives for lora"):
        recipe = load_recipe(recipe_file, ["adapter.method=prefix", "adapter.num_virtual_tokens=5"])
    assert recipe.adapter.options() == {"num_virtual_tokens": 5}


@pytest.mark.filterwarnings("error::adapterlab.recipe.RecipeNote")
def test_the_same_method_keeps_its_options(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["adapter.method=lora", "adapter.alpha=8"]).adapter.options() == {
        "r": 4,
        "alpha": 8,
    }
    recipe_file.write_text(GOOD.replace("method: lora, r: 4", "method: bottleneck, reduction_factor: 4"))
    assert load_recipe(recipe_file, ["adapter.method=adapter"]).adapter.options() == {"reduction_factor": 4}
    whole = load_recipe(recipe_file, ["adapter={method: lora, r: 2}"])
    assert whole.adapter.options() == {"r": 2}


# --- writing a recipe back


@pytest.mark.parametrize("name", list(catalog.shipped()))
def test_shipped_recipes_load_and_are_written_back_equal(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe
    assert recipe.description
    assert recipe.run.dir == f"runs/{name.rpartition('/')[2]}"


def test_a_written_recipe_keeps_awkward_values(recipe_file: Path) -> None:
    given = ["data.labels=[no, '1e-4', '~', 'é ☃', '12:30']", "adapter.target_modules=[query]", "data.test=0.2"]
    recipe = load_recipe(recipe_file, [*given, "optim.lr=1e-05", 'model.name="a: b # c"', "adapter.layers="])
    recipe_file.write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(recipe_file)
    assert again == recipe
    assert again.adapter.options()["layers"] is None
    assert again.data.labels == ["no", "1e-4", "~", "é ☃", "12:30"]


def test_a_recipe_can_not_be_changed() -> None:
    recipe = load_recipe("quickstart")
    with pytest.raises(ValueError, match="frozen"):
        recipe.optim.lr = 1.0  # type: ignore[misc]


# --- the catalogue and the schema


def test_shipped_names() -> None:
    names = list(catalog.shipped())
    assert names[0] == "quickstart"
    assert {f"classify/{method}-bert" for method in ("lora", "adalora", "prefix", "bottleneck")} < set(names)
    assert "classify/lora-gpt2" in names


def test_find_prefers_a_file_and_is_not_misled_by_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert catalog.find("quickstart") == catalog.shipped()["quickstart"]
    assert catalog.find("quickstart.yaml") == catalog.shipped()["quickstart"]
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    assert catalog.find("quickstart.yaml") == Path("quickstart.yaml")


def test_a_name_that_is_not_found_gets_the_nearest(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'quikstart'\. Did you mean 'quickstart'\? Shipped: quickstart, "):
        catalog.find("quikstart")
    with pytest.raises(ConfigError, match=r"no file reveiws\.yaml\. Did you mean 'reviews\.yaml'\?"):
        catalog.find("reveiws.yaml")
    run = recipe_file.parent / "runs"
    run.mkdir()
    (run / "recipe.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"'runs' is a run folder; its recipe is runs.recipe\.yaml"):
        catalog.find("runs")


def test_every_key_is_described() -> None:
    for section in Recipe.model_fields.values():
        for name, field in getattr(section.annotation, "model_fields", {}).items():
            assert field.description, name


def test_the_json_schema_knows_methods_options_and_metrics() -> None:
    schema = json_schema()
    adapter, task = schema["$defs"]["AdapterSection"], schema["$defs"]["TaskSection"]
    assert {"lora", "adalora", "prefix", "bottleneck", "adapter"} <= set(adapter["properties"]["method"]["enum"])
    rule = next(rule for rule in adapter["allOf"] if rule["if"]["properties"]["method"]["enum"] == ["lora"])
    assert {"method", "r", "alpha", "lora_alpha"} <= set(rule["then"]["properties"])
    assert rule["then"]["additionalProperties"] is False
    assert "accuracy" in str(task["properties"]["metrics"])
    assert schema["$defs"]["OptimSection"]["additionalProperties"] is False
