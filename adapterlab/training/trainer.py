"""Set up `transformers.Trainer` from a recipe."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import nested_detach

from adapterlab.data import Splits
from adapterlab.errors import ConfigError
from adapterlab.recipe import Recipe
from adapterlab.recipe.schema import OptimSection
from adapterlab.speed import precision
from adapterlab.tasks import METRICS, Predictions, Task
from adapterlab.training.callbacks import MetricsLog, Narrator
from adapterlab.training.groups import parameter_groups
from adapterlab.training.loggers import logger_callbacks
from adapterlab.training.run_folder import RunFolder
from adapterlab.training.streaming import PlaceInCorpus

ROW_NUMBER = "_number"  # a column of rows to train on whose lower layers are cached


class TaskTrainer(Trainer):
    """A Trainer whose loss, outputs and metrics are the task's.

    Args:
        task: the task.
        optim: the recipe's section, for rates and decays of parameters.
        measure: computes the metrics of the eval rows' outputs.
        options: for `Trainer`.
    """

    compute_metrics: Any
    optimizer: Any

    def __init__(
        self, task: Task, optim: OptimSection, measure: Callable[[Any], dict[str, float]], **options: Any
    ) -> None:
        self.task, self.optim = task, optim
        self.final = False  # whether outputs are for good
        self.lower_states: Any = None  # what the lower layers give, while it is read from disk
        super().__init__(
            compute_metrics=lambda output: measure(_in_order(output.predictions, self.eval_dataset)), **options
        )
        # Classification models accept **kwargs but ignore the item count that the Trainer passes for its loss, which
        # would then be multiplied by the number of processes and not divided by the accumulated batches.
        self.model_accepts_loss_kwargs = task.counts_items

    def outputs(self, encoded: Dataset, *, final: bool = True) -> Any:
        """Return the task's outputs for encoded rows, in their order: the final ones, or those while training."""
        measure, self.compute_metrics, self.final = self.compute_metrics, None, final
        try:
            return _in_order(self.predict(encoded).predictions, encoded)
        finally:
            self.compute_metrics, self.final = measure, False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Have the task compute the loss."""
        with nullcontext() if self.lower_states is None else self.lower_states.of(inputs):
            loss, outputs = self.task.forward(model, inputs, num_items_in_batch)
        if share := self.optim.label_smoothing:
            loss = (1 - share) * loss + share * self.task.spread(outputs, inputs, num_items_in_batch)
        if self.task.counts_items and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the items are those of all processes; gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: nobody reads the estimate, for which every parameter would be counted in every step."""
        return 0

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer, with the recipe's rates and decays."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(parameter_groups(self.model, self.optim), **options)
        return self.optimizer

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """Return loss and the task's outputs; what is true is read from the rows, not from here."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, kept = self.task.answer(model, inputs, final=self.final)
        kept = nested_detach(kept)
        first = kept[0] if isinstance(kept, tuple) else kept
        # a mean of batches' means is not the mean over items: a task that counts them measures its loss itself
        shown = None if loss is None or self.task.counts_items else loss.detach().mean()
        return shown, kept, first.new_zeros(len(first))

    def get_train_dataloader(self) -> Any:
        """Return the loader of the rows to train on. A stream's takes nothing of the seeds that a resume restores."""
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        loader: Any = DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return by_length(eval_dataset)  # little padding; `_in_order` puts the outputs back

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns: list[str] = list({*self._signature_columns, *self.task.extra_inputs, ROW_NUMBER})


def by_length(encoded: Any) -> list[int]:
    """Return the places of encoded rows, the longest first: what needs most memory shows at once."""
    known = "length" in encoded.column_names
    lengths = encoded["length"] if known else [len(ids) for ids in encoded["input_ids"]]
    return sorted(range(len(encoded)), key=[-length for length in lengths].__getitem__)


def _in_order(outputs: Any, encoded: Any) -> Any:
    if isinstance(outputs, tuple | list):
        return tuple(_in_order(part, encoded) for part in outputs)
    ordered = np.empty_like(outputs)
    ordered[by_length(encoded)] = outputs
    return ordered


def build_trainer(
    recipe: Recipe,
    task: Task,
    model: Any,
    tokenizer: Any,
    splits: Splits,
    rows: dict[str, Any],
    folder: RunFolder,
    narrator: Narrator,
) -> TaskTrainer:
    """Return a Trainer whose every setting comes from the recipe; `rows` are the encoded splits."""
    trainer = TaskTrainer(
        task,
        recipe.optim,
        lambda outputs: task.measure(Predictions(outputs, rows["eval"], splits.eval)),
        model=model,
        args=training_arguments(recipe, task, row_count(rows["train"]), folder),
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        data_collator=task.collator(tokenizer),
        callbacks=[narrator, *logger_callbacks(list(recipe.log.to), folder.path)],
    )
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    if isinstance(rows["train"], IterableDataset):
        trainer.add_callback(PlaceInCorpus(rows["train"], rows_each_step(recipe)))
    if "jsonl" in recipe.log.to:
        trainer.add_callback(MetricsLog(folder.metrics))
    if recipe.eval.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.eval.patience))
    return trainer


def training_arguments(recipe: Recipe, task: Task, train_rows: int | None, folder: RunFolder) -> TrainingArguments:
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
        warmup_steps=round(optim.warmup_ratio * steps) if optim.warmup_steps is None else optim.warmup_steps,
        weight_decay=optim.weight_decay,
        per_device_train_batch_size=optim.batch_size,
        per_device_eval_batch_size=optim.eval_batch_size,
        num_train_epochs=optim.epochs,
        max_steps=optim.max_steps or -1,
        gradient_accumulation_steps=optim.accumulate,
        max_grad_norm=optim.max_grad_norm,
        run_name=folder.path.name,
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
        include_num_input_tokens_seen="non_padding" if task.raw_text else "no",
        ignore_data_skip=train_rows is None,  # a stream goes to its place by itself,
        accelerator_config={"dispatch_batches": False},  # and every process reads it, to keep its part
        **_grouped_by_length(),
        **(_checkpointed() if optim.gradient_checkpointing else {}),
        **when,
    )


def best_metric(recipe: Recipe, task: Task) -> str:
    """Return the name of the metric that decides which state is kept; "loss" counts as one.

    Raises:
        ConfigError: it is measured only when training is over.
    """
    wanted = recipe.eval.best
    if wanted == "loss":
        return wanted
    best = task.eval_metrics[0] if wanted is None else METRICS.canonical(wanted)
    if best in task.eval_metrics:
        return best
    measured = ", ".join([*task.eval_metrics, "loss"])
    when = "is measured only when training is over" if best in task.metrics else "isn't measured on these rows"
    raise ConfigError(
        f"eval.best: {best} {when}; evaluations while training measure: {measured}. {task.deferred}".rstrip()
    )


def planned_steps(recipe: Recipe, train_rows: int | None) -> int:
    """Return how many optimizer steps the run has; a stream has no number of rows."""
    optim = recipe.optim
    if optim.max_steps is not None:
        return optim.max_steps
    batches = math.ceil((train_rows or 1) / (optim.batch_size * int(os.environ.get("WORLD_SIZE", "1"))))
    return max(1, math.ceil(max(1, math.ceil(batches / optim.accumulate)) * optim.epochs))


def rows_each_step(recipe: Recipe) -> int:
    """Return how many rows an optimizer step takes, over all processes."""
    return recipe.optim.batch_size * recipe.optim.accumulate * int(os.environ.get("WORLD_SIZE", "1"))


def row_count(rows: Any) -> int | None:
    """Return the number of rows to train on; None of a stream."""
    return None if isinstance(rows, IterableDataset) else len(rows)


def _grouped_by_length() -> dict[str, Any]:
    """Batches of about equal lengths waste less on padding."""
    return (
        {"train_sampling_strategy": "group_by_length"}
        if _known("train_sampling_strategy")
        else {"group_by_length": True}
    )


def _checkpointed() -> dict[str, Any]:
    """Keep no activations; not the re-entrant way, which wants gradients for a frozen backbone's inputs."""
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if _known(name))
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _known(name: str) -> bool:
    """Whether this version of transformers has a setting: some were renamed within 5.x."""
    return any(field.name == name for field in dataclasses.fields(TrainingArguments))
