"""Files that change between a run and its resumption."""

from __future__ import annotations

import pytest
from corpora import tiny_bert, write_corpora

import adapterlab


@pytest.mark.parametrize("changed", ["train.jsonl", "held_out.jsonl", "general.txt"])
def test_a_changed_corpus_is_not_gone_on_with(changed, tmp_path):
    train, held_out, general = write_corpora(tmp_path)
    recipe = [
        "pretrain/lora-bert", f"model.name={tiny_bert(tmp_path / 'bert')}", f"run.dir={tmp_path / 'run'}",
        f"data.train={train}", f"data.eval={held_out}", f"data.replay={{train: {general}, share: 0.25}}",
        "data.max_length=32", "optim.batch_size=4", "eval.every=1", "optim.precision=fp32", "log.plot=false",
    ]  # fmt: skip
    adapterlab.run(*recipe, "optim.max_steps=1")
    file = tmp_path / changed
    file.write_text(file.read_text().replace("the", "no", 1))
    with pytest.raises(adapterlab.AdapterLabError, match=f"'{changed}' changed.*as they were.*--replace"):
        adapterlab.run(*recipe, "optim.max_steps=2", resume="auto")
    write_corpora(tmp_path)
    adapterlab.run(*recipe, "optim.max_steps=2", resume="auto")
