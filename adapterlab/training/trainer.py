"""Set up `transformers.Trainer` from a recipe."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from adapterlab.recipe import Recipe
from adapterlab.tasks import METRICS, Task
from adapterlab.training import precision
from adapterlab.training.callbacks import MetricsLog, Narrator
from adapterlab.training.run_folder import RunFolder


def build_trainer(
    recipe: Recipe, task: Task, model: Any, tokenizer: Any, rows: dict[str, Any], folder: RunFolder, narrator: Narrator
) -> Trainer:
    """Return a Trainer whose every setting comes from the recipe; `rows` are the encoded splits."""
    trainer = Trainer(
        model=model,
        args=training_arguments(recipe, task, len(rows["train"]), folder),
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        data_collator=task.collator(tokenizer),
        compute_metrics=lambda output: task.compute_metrics(output.predictions, output.label_ids),
        callbacks=[narrator],
    )
    # Classification models accept **kwargs but ignore the item count that the Trainer passes for its loss, which
    # would then be multiplied by the number of processes and not divided by the accumulated batches.
    trainer.model_accepts_loss_kwargs = False
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    if "jsonl" in recipe.log.to:
        trainer.add_callback(MetricsLog(folder.metrics))
    if recipe.eval.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.eval.patience))
    return trainer


def training_arguments(recipe: Recipe, task: Task, train_rows: int, folder: RunFolder) -> TrainingArguments:
    """Translate the recipe's `optim` and `eval` sections."""
    optim, best = recipe.optim, best_metric(recipe, task)
    steps = planned_steps(recipe, train_rows)
    number_format, _ = precision.choose(optim.precision)
    when: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if recipe.eval.every is not None or optim.max_steps is not None:
        every = min(recipe.eval.every or steps, steps)
        when = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": every, "save_steps": every}
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        seed=recipe.run.seed,
        learning_rate=optim.lr,
        lr_scheduler_type=optim.schedule if optim.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(optim.warmup_ratio * steps),
        weight_decay=optim.weight_decay,
        per_device_train_batch_size=optim.batch_size,
        per_device_eval_batch_size=optim.eval_batch_size,
        num_train_epochs=optim.epochs,
        max_steps=optim.max_steps or -1,
        gradient_accumulation_steps=optim.accumulate,
        max_grad_norm=optim.max_grad_norm,
        bf16=number_format == "bf16",
        fp16=number_format == "fp16",
        use_cpu=precision.device() == "cpu",
        load_best_model_at_end=True,
        metric_for_best_model=best if best == "loss" else f"eval_{best}",
        greater_is_better=best != "loss" and task.higher_is_better(best),
        save_total_limit=2,
        logging_steps=max(1, steps // 60),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=precision.device() == "cuda",
        **_grouped_by_length(),
        **when,
    )


def best_metric(recipe: Recipe, task: Task) -> str:
    """Return the name of the metric that decides which state is kept; "loss" counts as one."""
    wanted = recipe.eval.best
    return task.metrics[0] if wanted is None else wanted if wanted == "loss" else METRICS.canonical(wanted)


def planned_steps(recipe: Recipe, train_rows: int) -> int:
    """Return how many optimizer steps the run has."""
    optim = recipe.optim
    if optim.max_steps is not None:
        return optim.max_steps
    batches = math.ceil(train_rows / (optim.batch_size * int(os.environ.get("WORLD_SIZE", "1"))))
    return max(1, math.ceil(max(1, math.ceil(batches / optim.accumulate)) * optim.epochs))


def _grouped_by_length() -> dict[str, Any]:
    """Batches of about equal lengths waste less on padding. transformers renamed the setting in 5.x."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    if "train_sampling_strategy" in fields:
        return {"train_sampling_strategy": "group_by_length"}
    return {"group_by_length": True}
