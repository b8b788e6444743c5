"""Causal language: what is learned of a row, what a window holds, and what can't work."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from conftest import DECODERS, randomize
from datasets import Dataset
from folders import END, backbone
from hypothesis import given, settings
from hypothesis import strategies as st

import adapterlab
from adapterlab.errors import BackboneError, ConfigError, DataError
from adapterlab.predicting import Predictor
from adapterlab.pretrained import load_backbone, load_tokenizer
from adapterlab.tasks import METRICS, TASKS, compute

TEXTS = ["the quick brown fox jumps over the lazy dog, and the dog sleeps on", "What is it? It is a dog."] * 5
ROWS = [
    {"prompt": "What is it?", "completion": "It is a dog."},
    {"prompt": "the quick", "completion": "brown fox jumps"},
    {"prompt": "What jumps over the lazy dog?", "completion": "the fox"},
    {"prompt": "the dog", "completion": "sleeps on and on"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders(architecture, **how) gives a tiny backbone's folder."""
    made = {}

    def folder(architecture="gpt2", **how):
        key = (architecture, *sorted(how.items()))
        if key not in made:
            made[key] = backbone(tmp_path_factory.mktemp("backbones") / "it", architecture, TEXTS, **how)
        return made[key]

    return folder


def opened(folder, method=None, task="instruction", **options):
    """Return a task, a model with an adapter, and a tokenizer that know each other."""
    task = TASKS.get(task)(options={"max_new_tokens": 8, **options})
    tokenizer = load_tokenizer(folder)
    model, _ = load_backbone(folder, task.auto_class, tokenizer)
    if method:
        adapterlab.attach(model, method)
        randomize(model, std=0.1)
    task.prepare(model, tokenizer)
    return task, model.eval(), tokenizer


def learned(encoded, tokenizer):
    """The text of the tokens that count in the loss, row by row."""
    rows = zip(encoded["input_ids"], encoded["labels"], strict=True)
    return [tokenizer.decode([i for i, label in zip(*row, strict=True) if label != -100]) for row in rows]


def losses(task, model, encoded, tokenizer):
    """Each row's summed loss and tokens."""
    columns = [name for name in encoded.column_names if name[0] != "_"]
    with torch.no_grad():
        return task.forward(model, task.collator(tokenizer)(list(encoded.select_columns(columns))))[1].rows


def recipe(folder, data, run, **task):
    return {
        "version": 1,
        "run": {"dir": str(run)},
        "model": {"name": folder},
        "adapter": {"method": "lora", "r": 4, "dropout": 0.0},
        "task": {"type": "instruction", "max_new_tokens": 8, **task},
        "data": {"train": str(data), "eval": str(data), "max_length": 32},
        "optim": {"lr": 1e-2, "batch_size": 4, "max_steps": 2, "precision": "fp32"},
    }


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_only_completions_are_learned_and_their_end(folders):
    task, _, tokenizer = opened(folders())
    encoded = task.encode(Dataset.from_list(ROWS), tokenizer, 64, name="train")
    assert learned(encoded, tokenizer) == [f" {row['completion']}{END}" for row in ROWS]
    task, _, tokenizer = opened(folders(), train_on="all", separator="\n")
    encoded = task.encode(Dataset.from_list(ROWS[:1]), tokenizer, 64, name="train")
    first = tokenizer.decode(encoded["input_ids"][0][:1])
    assert first + learned(encoded, tokenizer)[0] == f"What is it?\nIt is a dog.{END}"


texts = st.text(st.sampled_from("the quick?. dog\n\té狗 "), min_size=1, max_size=12).filter(str.strip)


@settings(deadline=None, max_examples=25)
@given(prompt=texts, completion=texts)
def test_training_shows_the_prompt_as_predict_will(folders, prompt, completion):
    """Though tokens merge across the border: 'the d' + 'og' has the token of 'dog', and the prompt alone has not."""
    task, _, tokenizer = opened_once(folders)
    [asked] = task.encode(Dataset.from_list([{"prompt": prompt}]), tokenizer, 64)["input_ids"]
    encoded = task.encode(
        Dataset.from_list([{"prompt": prompt, "completion": completion}]), tokenizer, 64, name="train"
    )
    [ids], [labels] = encoded["input_ids"], encoded["labels"]
    assert ids[: len(asked)] == asked
    assert encoded["prompt_length"] == [len(asked)]
    assert labels == [-100] * len(asked) + ids[len(asked) :]
    assert tokenizer.decode(ids) == f"{prompt}{completion}{END}"


_ONCE = {}


def opened_once(folders):
    if not _ONCE:
        _ONCE["it"] = opened(folders(), separator="")
    return _ONCE["it"]


def test_every_answer_of_a_conversation_is_learned(folders):
    task, _, tokenizer = opened(folders(chat=True))
    talk = [
        {"role": "assistant", "content": "a greeting"},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "It is a dog."},
        {"role": "user", "content": "the fox?"},
        {"role": "assistant", "content": "sleeps"},
    ]
    encoded = task.encode(Dataset.from_list([{"messages": talk}]), tokenizer, 128, name="train")
    assert learned(encoded, tokenizer) == [f"It is a dog.{END}\nsleeps{END}\n"]
    whole = tokenizer.apply_chat_template(talk, tokenize=False)
    assert tokenizer.decode(encoded["input_ids"][0]) == whole
    asked = task.encode(Dataset.from_list([{"messages": talk}]), tokenizer, 128)
    assert tokenizer.decode(asked["input_ids"][0]) == whole.removesuffix(f"sleeps{END}\n")
    assert task.reference({"messages": talk}) == "sleeps"
    assert task.stops == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", f"User: What is it?\nAssistant:|ANSWER| It is a dog.{END}\n"),
        ("chatml", f"<|im_start|>user\nWhat is it?{END}\n<|im_start|>assistant\n|ANSWER|It is a dog.{END}\n"),
    ],
)
def test_a_template_of_ours_where_the_tokenizer_has_none(folders, template, text):
    task, _, tokenizer = opened(folders(), template=template)
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is a dog."}]
    messages = task.clean("messages", json.dumps(talk))
    prompt, answer = text.split("|ANSWER|")
    for row in ({"messages": messages}, ROWS[0]):  # a prompt is asked as a user's message
        encoded = task.encode(Dataset.from_list([row]), tokenizer, 128, name="train")
        assert tokenizer.decode(encoded["input_ids"][0]) == prompt + answer
        assert learned(encoded, tokenizer) == [answer]
    asked = task.encode(Dataset.from_list([{"prompt": "What is it?"}]), tokenizer, 128)
    assert tokenizer.decode(asked["input_ids"][0]) == prompt


def test_an_answer_that_was_cut_away_is_not_asked_for(folders):
    task, _, tokenizer = opened(folders(chat=True))
    turn = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "dog"}]
    rows = Dataset.from_list(
        [{"messages": turn}, {"messages": [*turn, {"role": "user", "content": "lazy " * 60}, turn[1]]}]
    )
    encoded = task.encode(rows, tokenizer, 60, name="test")
    assert learned(encoded, tokenizer) == [f"dog{END}\n"] * 2
    assert encoded["number"][0] == 0
    assert encoded["number"][1] > 1000


def test_messages_without_a_template_are_explained(folders):
    task, _, tokenizer = opened(folders())
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "the"}]}])
    with pytest.raises(BackboneError, match=r"has no chat template.*task\.template=plain"):
        task.encode(rows, tokenizer, 64)


def test_a_template_that_rewrites_the_past_is_refused(folders):
    task, _, tokenizer = opened(folders(chat=True))
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    talk = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "dog"}] * 2
    with pytest.raises(DataError, match=r"train, row 1: .*differently when it goes on.*task\.template=chatml"):
        task.encode(Dataset.from_list([{"messages": talk}]), tokenizer, 64, name="train")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no json", "no JSON list"),
        ([{"role": "usr", "content": "x"}], "Did you mean 'user'"),
        ([{"role": "user", "content": ["x"]}], "content is a list"),
        ({"role": "user"}, "no list of messages"),
    ],
)
def test_messages_that_are_none(value, said):
    with pytest.raises(ValueError, match=said):
        TASKS.get("instruction")().clean("messages", value)


def test_long_rows_are_cut_and_those_without_an_answer_left_out(folders):
    task, _, tokenizer = opened(folders())
    rows = Dataset.from_list([*ROWS, {"prompt": "lazy " * 60, "completion": "dog"}])
    encoded = task.encode(rows, tokenizer, 12, name="eval")
    assert encoded["_row"] == [0, 1, 2, 3]
    assert max(map(len, encoded["input_ids"])) <= 12
    assert any("1 of 5 rows of eval have no token to learn within 12 tokens" in note for note in task.notes)
    with pytest.raises(DataError, match=r"nothing is left\. Raise data\.max_length"):
        task.encode(rows.select([4]), tokenizer, 12, name="train")
    [asked] = task.encode(rows.select([4]), tokenizer, 12)["input_ids"]
    assert tokenizer.decode(asked) == ("lazy " * 60)[-len(tokenizer.decode(asked)) :], "a prompt keeps its end"
    assert len(asked) == 12


@pytest.mark.parametrize("method", [None, "lora", "adalora", "prefix", "bottleneck"])
@pytest.mark.parametrize("architecture", [name for name in DECODERS if name != "opt"])
def test_packed_rows_do_not_see_each_other(architecture, method, folders):
    """The losses of windows are those of their rows alone."""
    alone, model, tokenizer = opened(folders(architecture), method)
    together, _, _ = opened(folders(architecture), method, packing=True)
    rows = Dataset.from_list(ROWS)
    packed = together.encode(rows, tokenizer, 24, name="train")
    assert len(packed) < len(rows)
    by_row = losses(alone, model, alone.encode(rows, tokenizer, 24, name="train"), tokenizer)
    in_windows = losses(together, model, packed, tokenizer)
    torch.testing.assert_close(in_windows.sum(0), by_row.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("architecture", "method"), [("opt", "lora"), ("gpt2", "prompt"), ("llama", "p_tuning")])
def test_packing_is_refused_where_rows_would_mix(architecture, method, folders):
    with pytest.raises(BackboneError, match=r"rows packed into one window would see each other.*task\.packing=false"):
        opened(folders(architecture), method, packing=True)


def test_a_bert_is_refused(tmp_path, folders):
    folder = folders()
    config = transformers.BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    load_tokenizer(folder).save_pretrained(tmp_path / "bert")
    with pytest.raises(BackboneError, match=r"sees the tokens that follow.*masked_lm"):
        opened(str(tmp_path / "bert"))


def test_no_room_for_a_prompt_is_refused(folders):
    with pytest.raises(BackboneError, match="max_new_tokens=128 leaves no room for a prompt in GPT2LMHeadModel's 128"):
        opened(folders(), max_new_tokens=128)


def test_accumulated_batches_weigh_every_token_the_same(folders, rows_file, tmp_path):
    """One batch of four rows, four of one: the same step, though the completions differ in length."""
    logged = []
    for number, (batch, accumulate) in enumerate([(4, 1), (1, 4)]):
        run = tmp_path / f"run{number}"
        more = [
            "optim.label_smoothing=0.1",
            f"optim.batch_size={batch}",
            f"optim.accumulate={accumulate}",
            "optim.max_steps=1",
            "log.plot=false",
        ]
        adapterlab.run(recipe(folders("llama"), rows_file, run), *more)
        logged.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0]))
    for key in ("loss", "grad_norm"):
        assert logged[1][key] == pytest.approx(logged[0][key], rel=1e-3)


def test_answers_do_not_depend_on_the_batch(folders, rows_file, tmp_path):
    """Prompts of different lengths are padded on the left."""
    adapterlab.run(recipe(folders(), rows_file, tmp_path / "run"), "optim.max_steps=20")
    predictor = Predictor(tmp_path / "run")
    prompts = [row["prompt"] for row in ROWS] + ["", "the"]
    together = list(predictor.predict(prompts, batch_size=6))
    assert [answer["prompt"] for answer in together] == prompts
    assert together == list(predictor.predict(prompts, batch_size=1))


def test_choosing_by_a_metric_that_is_not_measured_while_training(folders, rows_file, tmp_path):
    given = recipe(folders(), rows_file, tmp_path / "run", metrics=["perplexity", "rougeL"])
    with pytest.raises(ConfigError, match=r"eval\.best: rougeL is measured only when training is over.*generate_eval"):
        adapterlab.run({**given, "eval": {"best": "rougeL"}})
    adapterlab.run({**given, "eval": {"best": "rougeL", "every": 1}}, "task.generate_eval=2")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in logged if "eval_rougeL" in row and "eval_loss" in row]) == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a"}] * 3, "prompts but no completions"),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": ""}],
            r"a prompt and no completion.*line 2",
        ),
        ([{"prompt": "a", "completion": "b", "text": "c"}] * 2, "both prompt and text"),
        ([{"messages": [{"role": "user", "content": "x"}]}] * 2, r"no assistant's answer.*line"),
    ],
)
def test_rows_that_teach_nothing(rows, said, folders, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=said):
        adapterlab.run(recipe(folders(), path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_rouge_is_rouge_scores_and_reads_other_scripts():
    from rouge_score import rouge_scorer

    one, two = "The dog's bed: 3 quick-brown foxes", "A dog sleeps in the bed of 3 brown foxes!"
    own = compute(["rouge1", "rouge2", "rougeL"], [one], [two])
    theirs = rouge_scorer.RougeScorer(list(own)).score(two, one)
    assert own == {name: pytest.approx(score.fmeasure) for name, score in theirs.items()}
    assert compute(["rouge1"], ["我爱北京"], ["我爱上海"])["rouge1"] == pytest.approx(0.5)
    assert compute(["rouge1"], ["Größe zählt"], ["größe"])["rouge1"] == pytest.approx(2 / 3)


def test_other_metrics_of_texts():
    same = ["the quick brown fox jumps", "over the lazy dog"]
    scores = compute(["bleu", "chrf", "exact_text"], same, same)
    assert scores == {"bleu": pytest.approx(100), "chrf": pytest.approx(100), "exact_text": 1.0}
    assert compute(["perplexity"], [0.0, 3 * 0.6931472], [1.0, 2.0]) == {"perplexity": pytest.approx(2.0)}
    assert not METRICS.get("perplexity").higher_is_better
