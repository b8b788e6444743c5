"""Tasks: what is learned and how it is measured. Importing this loads no torch, transformers or scikit-learn.

A task is one file: subclass `Task`, decorate it with `@register_task("name")`. Another distribution names its
module in the entry-point group "adapterlab.tasks" (and "adapterlab.metrics" for metrics).
"""

from adapterlab.tasks.base import TASKS, Task, register_task
from adapterlab.tasks.causal_lm import CausalLM
from adapterlab.tasks.classification import Classification
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.instruction import Instruction
from adapterlab.tasks.masked_lm import MaskedLM
from adapterlab.tasks.metrics import METRICS, MetricSpec, compute, number_metric, register_metric
from adapterlab.tasks.multilabel import Multilabel
from adapterlab.tasks.multiple_choice import MultipleChoice
from adapterlab.tasks.qa import QuestionAnswering
from adapterlab.tasks.regression import Regression
from adapterlab.tasks.relation import Relation
from adapterlab.tasks.seq2seq import Seq2Seq
from adapterlab.tasks.settings import TaskOptions
from adapterlab.tasks.similarity import Similarity
from adapterlab.tasks.tagging import Tagging

__all__ = [
    "METRICS",
    "TASKS",
    "CausalLM",
    "Classification",
    "Evidence",
    "Instruction",
    "MaskedLM",
    "MetricSpec",
    "Multilabel",
    "MultipleChoice",
    "Predictions",
    "QuestionAnswering",
    "Regression",
    "Relation",
    "ReportTable",
    "Seq2Seq",
    "Similarity",
    "Tagging",
    "Task",
    "TaskOptions",
    "compute",
    "number_metric",
    "register_metric",
    "register_task",
]
