"""Multilingual backbones (mBART, mBART-50, NLLB, M2M100): languages are options of seq2seq."""

from __future__ import annotations

import io
import json

import pytest
import sentencepiece
import torch
import transformers as T
from datasets import Dataset
from folders import backbone

import adapterlab
from adapterlab.errors import BackboneError
from adapterlab.predicting import Predictor
from adapterlab.pretrained import load_backbone, load_tokenizer
from adapterlab.tasks import TASKS
from adapterlab.tasks.text_batches import decoder_inputs

PAIRS = [("one dog", "ein Hund"), ("two dogs", "zwei Hunde"), ("one fox", "ein Fuchs"), ("two foxes", "zwei Füchse")]
TEXTS = [text for pair in PAIRS for text in pair] * 5
CODES = {
    "mbart": ("en_XX", "de_DE"), "mbart50": ("en_XX", "de_DE"), "nllb": ("eng_Latn", "deu_Latn"), "m2m": ("en", "de"),
}  # fmt: skip


def m2m(folder):
    """M2M100's tokenizer reads SentencePiece's own files, which the others have converted."""
    model, vocabulary = io.BytesIO(), {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=70, hard_vocab_limit=False, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for number in range(3, pieces.get_piece_size()):
        vocabulary.setdefault(pieces.id_to_piece(number), len(vocabulary))
    (folder / "pieces.model").write_bytes(model.getvalue())
    (folder / "pieces.json").write_text(json.dumps(vocabulary))
    return T.M2M100Tokenizer(str(folder / "pieces.json"), str(folder / "pieces.model"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders(kind) is the folder of a tiny seeded backbone of it, made once."""
    made = {}

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        if kind == "m2m":
            tokenizer = m2m(folder)
            words = max(tokenizer.lang_code_to_id.values()) + 1
        else:
            new = {"mbart": T.MBartTokenizer, "mbart50": T.MBart50Tokenizer, "nllb": T.NllbTokenizer}[kind]()
            tokenizer = new.train_new_from_iterator(TEXTS, 300)
            words = len(tokenizer)
        tokenizer.save_pretrained(folder)
        sizes = {
            "vocab_size": words, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32,
            "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "dropout": 0.0,
            "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "bos_token_id": tokenizer.bos_token_id, "init_std": 0.2,
            "decoder_start_token_id": None if kind == "mbart" else tokenizer.eos_token_id,
        }  # fmt: skip
        architecture = T.MBartConfig if kind.startswith("mbart") else T.M2M100Config
        torch.manual_seed(0)
        T.AutoModelForSeq2SeqLM.from_config(architecture(**sizes)).save_pretrained(folder)
        return str(folder)

    def folder_of(kind):
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return folder_of


def opened(folder):
    tokenizer = load_tokenizer(folder)
    return load_backbone(folder, "AutoModelForSeq2SeqLM", tokenizer)[0].eval(), tokenizer


def prepared(folder, **options):
    model, tokenizer = opened(folder)
    task = TASKS.get("seq2seq")(options={"max_new_tokens": 6, **options})
    task.prepare(model, tokenizer)
    return task, model, tokenizer


@pytest.mark.parametrize("kind", CODES)
def test_texts_are_marked_with_their_languages(folders, kind):
    source, target = CODES[kind]
    task, model, tokenizer = prepared(folders(kind), source_language=source, target_language=target)
    rows = Dataset.from_list([{"source": s, "target": t} for s, t in PAIRS])
    encoded = task.encode(rows, tokenizer, 16, name="train")
    codes = [f"__{code}__" if kind == "m2m" else code for code in (source, target)]
    for column, code in zip(("input_ids", "labels"), codes, strict=True):
        for ids in encoded[column]:
            tokens = tokenizer.convert_ids_to_tokens(ids)
            assert code == tokens[-1 if kind == "mbart" else 0]
            assert tokens.count(code) == 1
    batch = task.collator(tokenizer)(list(encoded.remove_columns("_row")))
    written = decoder_inputs(model, batch["labels"])
    seen = {}
    forward = model.get_decoder().forward

    def look(input_ids=None, **given):
        seen.setdefault("first", input_ids)
        seen["last"] = input_ids
        return forward(input_ids=input_ids, **given)

    model.get_decoder().forward = look
    task.answer(model, {**batch, "labels": torch.full((4, 1), -100), "number": torch.full((4,), -1)})
    begun = tokenizer.convert_ids_to_tokens(seen["first"][0].tolist())
    assert begun == tokenizer.convert_ids_to_tokens(written[0][:1].tolist()), "it begins to write as it learned to"


@pytest.mark.parametrize("kind", ["mbart", "nllb"])
def test_a_run_learns_its_pairs_and_predict_knows_the_languages(folders, kind, tmp_path):
    source, target = CODES[kind]
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in PAIRS))
    recipe = {
        "version": 1,
        "run": {"dir": str(tmp_path / "run")},
        "model": {"name": folders(kind)},
        "adapter": {"method": "lora", "r": 16, "dropout": 0.0},
        "task": {
            "type": "seq2seq", "metrics": ["perplexity", "exact_text"], "max_new_tokens": 16,
            "source_language": source, "target_language": target,
        },
        "data": {"train": str(rows), "eval": str(rows), "max_length": 16},
        "optim": {"lr": 2e-2, "batch_size": 4, "max_steps": 60, "precision": "fp32"},
        "log": {"plot": False},
    }  # fmt: skip
    result = adapterlab.run(recipe)
    assert result.metrics["exact_text"] == 1
    answers = Predictor(tmp_path / "run").predict([source for source, _ in PAIRS])
    assert [answer["target"] for answer in answers] == [target for _, target in PAIRS]
    elsewhere = Predictor(tmp_path / "run", {"target_language": source})
    assert elsewhere.tokenizer.tgt_lang == source


@pytest.mark.parametrize("kind", ["nllb", "m2m"])
def test_sources_that_are_cut_are_counted(folders, kind):
    source, target = CODES[kind]
    task, _, tokenizer = prepared(folders(kind), source_language=source, target_language=target)
    task.encode(Dataset.from_list([{"source": "one dog " * 9, "target": "ein"}]), tokenizer, 6, name="train")
    assert any("1 of 1 sources cut to 6 tokens" in note for note in task.notes)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("nllb", {"target_language": "deu_Lat"}, "no language 'deu_Lat'. Did you mean 'deu_Latn'?"),
        (
            "m2m",
            {"source_language": "eng"},
            "task.source_language: the backbone's tokenizer has no language 'eng'. Did",
        ),
        ("mbart", {"source_language": "en_XX"}, "task.target_language: the backbone's tokenizer marks texts"),
        ("mbart50", {"target_language": "de"}, "no language 'de'. Did you mean 'de_DE'?"),
    ],
)
def test_wrong_languages(folders, kind, options, said):
    with pytest.raises(BackboneError) as caught:
        prepared(folders(kind), **{"source_language": CODES[kind][0], **options})
    assert said in str(caught.value)
    assert "Languages: a" in str(caught.value)


def test_a_tokenizer_without_languages(tmp_path):
    folder = backbone(tmp_path / "t5", "t5", TEXTS)
    with pytest.raises(
        BackboneError, match=r"task.target_language: .* knows no languages\. T5 is told by task\.prefix"
    ):
        prepared(folder, target_language="de")
