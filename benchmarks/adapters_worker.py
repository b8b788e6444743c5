"""One contender in another process: a training step of the `adapters` library, run when told to.

Runs in that library's own environment (see adapters_library.py), so it imports nothing of ours. Its one argument is
JSON: method, layers, batch, length, threads. It answers on standard output, a line of JSON each: first its versions,
then for every line that it reads the seconds that a step took.
"""

import json
import logging
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer


def main() -> None:
    asked = json.loads(sys.argv[1])
    import adapters
    import torch
    import transformers

    logging.disable(logging.WARNING)
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    base = transformers.BertConfig(num_hidden_layers=asked["layers"], attn_implementation="sdpa")
    model = transformers.BertForSequenceClassification(base)
    adapters.init(model)
    configs = {
        "bottleneck": lambda: adapters.SeqBnConfig(reduction_factor=12),
        "prefix": lambda: adapters.PrefixTuningConfig(flat=True, prefix_length=50),
    }
    model.add_adapter("adapter", config=configs[asked["method"]]())
    model.train_adapter("adapter")
    model.train()
    ids = torch.randint(5, 30000, (asked["batch"], asked["length"]))
    labels = torch.randint(0, 2, (asked["batch"],))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def step() -> None:
        model.zero_grad()
        model(**batch).loss.backward()

    step()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise SystemExit(f"not in use: {idle}")
    answer(
        {
            "adapters": adapters.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
            "attention": type(model.bert.encoder.layer[0].attention.self).__name__,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
    )
    for _ in sys.stdin:
        begun = time.perf_counter()
        step()
        answer(time.perf_counter() - begun)


def answer(content: object) -> None:
    """Write a line that the other side waits for."""
    print(json.dumps(content), file=answers, flush=True)


if __name__ == "__main__":
    main()
