"""The recipe: every key, its type, its bounds and its help.

The descriptions here are the only documentation of a key: `adapterlab schema` and the errors print them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a recipe: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _check_addresses(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise ValueError("must be an address (a path, hub:ID or package:NAME/PATH) or a list of addresses")
    return value


def _check_column(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item for item in items):
        raise ValueError("must be the name of a column of the file, or a list of names")
    return value


def _check_share(value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError("must be a share of train between 0 and 1 (0.1 is a tenth), or the address of a file")
    return float(value)


def _check_labels(value: Any) -> Any:
    if isinstance(value, list):
        # `labels: [0, 1]` is what one writes for a column of digits; labels are compared as text.
        value = [_as_label(item) for item in value]
        if all(isinstance(item, str) for item in value) and len(set(value)) < len(value):
            raise ValueError("names a label twice")
    return value


def _check_label_map(value: Any) -> Any:
    """Labels are compared as text, and `0: negative` is what one writes for a column of digits."""
    if isinstance(value, dict):
        return {_as_label(key): _as_label(name) for key, name in value.items()}
    return value


def _as_label(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_workers(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("must be auto, or a number of processes from 1 on")
    return value


def _check_cache(value: Any) -> Any:
    if not isinstance(value, bool) and not (isinstance(value, str) and value.strip()):
        raise ValueError("must be true, false or the path of a folder")
    return value


Text = Annotated[str, Field(min_length=1)]
Share = Annotated[Annotated[float, Field(gt=0, lt=1)] | Text, BeforeValidator(_check_share)]
Addresses = Annotated[Text | Annotated[list[Text], Field(min_length=1)], BeforeValidator(_check_addresses)]
Column = Annotated[Text | Annotated[list[Text], Field(min_length=1)], BeforeValidator(_check_column)]
Labels = Annotated[list[Text], Field(min_length=2), BeforeValidator(_check_labels)]

LabelMap = Annotated[dict[Text, Text], BeforeValidator(_check_label_map)]
Workers = Annotated[Literal["auto"] | int, BeforeValidator(_check_workers)]
Cache = Annotated[bool | Text, BeforeValidator(_check_cache)]


class RunSection(Section):
    """Where the run goes and what seeds it."""

    dir: Text | None = Field(None, description="Folder of the run. Default: runs/ and the recipe's name.")
    seed: int = Field(42, ge=0, lt=2**32, description="Seeds splits, initialisation, order and dropout.")
    deterministic: bool = Field(
        False, description="Allow only kernels that give the same bits each time: slower on a GPU; a CPU does anyway."
    )


class ModelSection(Section):
    """The frozen backbone."""

    name: Text = Field(
        description="The pretrained backbone: a Hub id, a local folder, or package:NAME/PATH.",
        examples=["bert-base-uncased"],
    )
    adapters: list[Text] = Field(
        default_factory=list,
        description="Adapters that the backbone gets first, for good, e.g. of continued pretraining: run folders, "
        "adapter folders or Hub ids. Merged, where their method merges, else kept beside the new one, frozen.",
        examples=["[runs/domain]"],
    )


class AdapterSection(Section):
    """The method, and beside it the method's own options."""

    model_config = ConfigDict(extra="allow")

    method: Text = Field(
        description="The adapter method; `adapterlab methods` lists them. Its options stand beside it.",
        examples=["lora"],
    )

    def options(self) -> dict[str, Any]:
        """Return the method's options as given, without `method`."""
        return dict(self.model_extra or {})


class TaskSection(Section):
    """What is learned, and what is measured. A task may have options of its own, beside these."""

    model_config = ConfigDict(extra="allow")

    type: Text = Field(description="The kind of task.", examples=["classification"])
    metrics: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None, description="What to measure; the first is the one that counts. Default: the task's own choice."
    )

    def options(self) -> dict[str, Any]:
        """Return the task's own options as given, without `type` and `metrics`."""
        return dict(self.model_extra or {})


class ReplaySection(Section):
    """General text that a backbone shall not forget while it learns a domain's; for tasks that read raw text."""

    train: Addresses = Field(description="General text, read as data.train is.", examples=["data/general.txt"])
    share: float = Field(
        0.1, ge=0, lt=1, description="Share of general text among what is trained on; 0 only measures it."
    )
    eval: Share = Field(0.1, description="General text to measure on: an address, or a share of replay.train.")
    columns: dict[str, Text] = Field(default_factory=dict, description="As data.columns, for these files.")


class DataSection(Section):
    """Where the rows come from and how they become examples."""

    train: Addresses = Field(
        description="Rows to train on: a file (csv, tsv, jsonl, json, parquet, txt, conll; also .gz and .zst of them), "
        "a folder, a glob, hub:ID, package:NAME/PATH, or a list of these.",
        examples=["data/train.csv"],
    )
    eval: Share = Field(0.1, description="Rows to evaluate on while training: an address, or a share of train.")
    test: Share | None = Field(
        None, description="Rows for the final table: an address or a share of train. Default: the eval rows."
    )
    columns: dict[str, Column] = Field(
        default_factory=dict,
        description="The task's inputs → the file's columns, where the names differ. Of multilabel, "
        "the label may be a list of 0/1 columns.",
    )
    labels: Labels | None = Field(
        None, description="The class names in the order wanted. Default: those found in train, sorted."
    )
    label_map: LabelMap = Field(
        default_factory=dict,
        description="The file's labels → the names wanted. A label that is in neither is an error.",
        examples=["{0: negative, 1: positive}"],
    )
    group_by: Text | None = Field(
        None,
        description="A column of the file; rows with the same value in it stay together when eval and test are made.",
    )
    deduplicate: bool = Field(
        False, description="Drop rows that repeat another one's inputs from given files too; made splits never do."
    )
    overlap: Literal["report", "drop", "refuse"] = Field(
        "report", description="Rows of train that are also in eval or test: say so, drop them from train, or stop."
    )
    max_length: int = Field(128, ge=4, description="Tokens per example; what long_texts does starts here.")
    long_texts: Literal["cut", "window", "refuse"] = Field(
        "cut",
        description="Texts longer than max_length: cut them and say how many, read them in overlapping windows, or "
        "stop. Not every task can read windows.",
    )
    stride: int = Field(32, ge=0, description="Tokens that a window shares with the one before.")
    max_samples: int | None = Field(
        None,
        ge=2,
        description="Train on so many rows at most, drawn with the seed, classes kept in proportion.",
    )
    bad_rows: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Rows with an empty text or no label: refuse the file, or drop them and say how many.",
    )
    encoding: Text | None = Field(None, description="Text encoding of the files. Default: detected.")
    streaming: bool = Field(
        False, description="Read train piece by piece instead of into memory: for pretraining on large corpora."
    )
    replay: ReplaySection | None = Field(
        None, description="General text that is mixed in, so that pretraining on a domain doesn't forget it."
    )
    workers: Workers = Field(
        "auto", description="Processes that prepare rows. auto: several where there are rows enough to pay for them."
    )
    cache: Cache = Field(
        True,
        description="Keep prepared rows on disk for the next run: true (in the cache of `datasets`, if there are "
        "rows enough), false, or a folder.",
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> DataSection:
        shares = [share for share in (self.eval, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError(f"eval and test take {' + '.join(map(str, shares))} of train, which leaves no rows")
        if self.group_by is not None and not shares:
            raise ValueError("group_by says how eval and test are made of train, but both are given as files")
        if self.long_texts == "window" and self.stride >= self.max_length - 2:
            raise ValueError(
                f"stride={self.stride} must be well below max_length={self.max_length}, or windows get nowhere"
            )
        return self


class OptimSection(Section):
    """How the adapter is trained."""

    lr: float = Field(gt=0, description="Peak learning rate. Adapters want 1e-4 to 1e-2.", examples=["5e-4"])
    head_lr: float | None = Field(
        None, gt=0, description="Learning rate of the task head and of modules_to_save. Default: lr."
    )
    lora_plus: float | None = Field(
        None, ge=1, description="LoRA+ (Hayou et al. 2024): the rate of the B matrices is so many times lr; e.g. 16."
    )
    schedule: Literal["linear", "cosine", "polynomial", "inverse_sqrt", "constant"] = Field(
        "linear", description="How the rate falls after the warm-up."
    )
    warmup_ratio: float = Field(0.06, ge=0, le=1, description="Share of the steps in which the rate rises to lr.")
    warmup_steps: int | None = Field(None, ge=0, description="The same as a number of steps; overrides warmup_ratio.")
    weight_decay: float = Field(
        0.0, ge=0, description="AdamW's weight decay, on matrices: not on biases, norms, factors and embeddings."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label's probability that is spread over all classes in training."
    )
    batch_size: int = Field(32, ge=1, description="Examples per step and device.")
    eval_batch_size: int = Field(64, ge=1, description="Examples per forward pass when evaluating.")
    epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many optimizer steps; overrides epochs.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients are added up before a step.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip gradients to this norm; 0 never clips.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice instead of keeping them: less memory, a third more time."
    )
    cache_lower_layers: bool = Field(
        False,
        description="Compute the layers below the adapter once for each row to train on and read their output from "
        "disk in each step; they and the embeddings drop nothing out then. For adapters in upper layers only "
        "(adapter.layers). `adapterlab train --dry-run` says the disk use: tokens of train x hidden size x 4 bytes.",
    )
    byte_dropout: bool = Field(
        True,
        description="Draw the backbone's own dropout in bytes, on a CPU: about a seventh less time. Rate, mean and "
        "independence are dropout's; false draws torch's masks, those of a plain loop at the same seed.",
    )
    compile: bool = Field(
        False,
        description="Compile the backbone's layers with torch.compile: minutes at the start, then perhaps faster "
        "steps. Needs a C++ compiler; not with FSDP or DeepSpeed.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Number format of the backbone's maths, and of bf16 its frozen linears' storage in training too. "
        "auto: what is fast here (see `adapterlab env`).",
    )


class EvalSection(Section):
    """When to evaluate, and what decides which state is kept."""

    every: int | None = Field(None, ge=1, description="Evaluate every so many steps. Default: after each epoch.")
    best: Text | None = Field(
        None, description="Keep the state that is best by this metric, or by loss. Default: the first metric."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without improvement. Default: never."
    )


class LogSection(Section):
    """What is written while training."""

    to: list[Literal["jsonl", "tensorboard", "wandb", "mlflow"]] = Field(
        ["jsonl"],
        description="Where metrics go: jsonl is metrics.jsonl in the run folder, tensorboard a folder of that name in "
        "it; wandb and mlflow as their own settings say. All but jsonl need the extra of their name.",
    )
    plot: bool = Field(True, description="Draw loss.png at the end.")


class Recipe(Section):
    """A whole training run, checked and complete."""

    version: Literal[1] = Field(description="The version of this format.", examples=["1"])
    description: str = Field("", description="One line for `adapterlab ls`.")
    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection
    adapter: AdapterSection
    task: TaskSection
    data: DataSection
    optim: OptimSection
    eval: EvalSection = Field(default_factory=EvalSection)
    log: LogSection = Field(default_factory=LogSection)

    @model_validator(mode="after")
    def _a_stream_has_an_end(self) -> Recipe:
        if self.data.streaming and self.optim.max_steps is None:
            raise ValueError("data.streaming: nobody knows how long the corpus is; set optim.max_steps")
        return self

    @model_validator(mode="after")
    def _a_stream_is_read_once(self) -> Recipe:
        if self.data.streaming and self.optim.cache_lower_layers:
            raise ValueError(
                "optim.cache_lower_layers: a stream's rows are read once, so there is nothing to read again; set it to "
                "false, or data.streaming"
            )
        return self
