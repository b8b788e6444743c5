"""The final table, loss.png and report.md."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
from rich.console import Console

from adapterlab.tasks import METRICS, MetricSpec, ReportTable
from adapterlab.training.plot import plot_history
from adapterlab.training.report import (
    ResultRow,
    duration,
    final_table,
    gain,
    markdown_table,
    parameters,
    size,
    write_report,
)

ROWS = [
    ResultRow("majority class", {"accuracy": 0.4291, "f1": 0.2002}),
    ResultRow("frozen backbone + logistic regression", {"accuracy": 0.6512, "f1": 0.6}, 1155, 22_714_371, 9.2),
    ResultRow("lora adapter", {"accuracy": 0.7312, "f1": 0.7}, 339_459, 23_052_675, 147.9, 1_412_000_000, 1_412_000),
]
TABLES = [
    ReportTable("Each class", ["class", "rows"], [["a|b", "12"], ["c", "1,203"]]),
    ReportTable("Confusion matrix", ["true", "a|b", "c"], [["a|b", "**10**", "2"]], "A row is the true class."),
]


def history(steps: int = 40) -> list[dict[str, float]]:
    """Rows as metrics.jsonl has them: a loss each 5 steps, an evaluation each 20."""
    made: list[dict[str, float]] = []
    for step in range(5, 5 * steps + 1, 5):
        made.append({"step": step, "epoch": step / 100, "loss": math.exp(-step / 90) + 0.1 * (step % 3)})
        if step % 20 == 0:
            made.append({"step": step, "eval_loss": math.exp(-step / 80), "eval_accuracy": 1 - math.exp(-step / 50)})
    return made


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def test_table_fits_80_columns_and_shows_every_figure():
    console = Console(width=80, file=io.StringIO())
    console.print(final_table(ROWS, ["accuracy", "f1"]))
    shown = console.file.getvalue()
    for figure in ("0.7312", "0.6000", "339 k", "23.1 M", "2m 28s", "1.4 GB", "1.4 MB", "majority class"):
        assert figure in shown
    assert "…" not in shown
    assert "+30.2 points over the majority class, +8.0 points over" in shown


def test_label_like_markup_in_a_row_name_is_shown_as_it_is():
    console = Console(width=120, file=io.StringIO())
    console.print(final_table([ResultRow("[red]x[/red]", {"f1": 1.0})], ["f1"]))
    assert "[red]x[/red]" in console.file.getvalue()


def test_markdown_table_leaves_out_empty_columns():
    lines = markdown_table(ROWS[:2], ["accuracy"]).splitlines()
    assert lines[0] == "|  | accuracy | trained | total | time |"
    assert lines[3] == "| frozen backbone + logistic regression | 0.6512 | 1.2 k | 22.7 M | 9.2 s |"


def test_gain_of_what_is_no_share_is_told_in_per_cent(monkeypatch):
    worse = MetricSpec("ppl", "perplexity", lambda: None, higher_is_better=False, is_share=False)
    monkeypatch.setitem(METRICS._entries, "ppl", worse)
    rows = [ResultRow("untouched backbone", {"ppl": 20.0}), ResultRow("lora adapter", {"ppl": 15.0})]
    assert gain(rows, ["ppl"]) == "ppl: -25.0 % against the untouched backbone"


def test_gain_needs_something_to_compare():
    assert gain(ROWS[:1], ["accuracy"]) == ""
    assert gain(ROWS, ["recall"]) == ""
    assert gain([ROWS[2], ROWS[0]], ["accuracy"]) == "accuracy: -30.2 points over the lora adapter"


def test_an_article_is_said_once():
    usual = dataclasses.replace(ROWS[0], name="the word's most frequent tag")
    assert gain([usual, ROWS[2]], ["accuracy"]).endswith("points over the word's most frequent tag")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(59.94), "59.9 s"),
        (duration(59.96), "1m 00s"),
        (duration(3599.6), "1h 00m"),
        (size(999), "999 B"),
        (size(999_600), "1.0 MB"),
        (size(133_000_000), "133 MB"),
        (size(5_000_000_000_000), "5000 GB"),
        (parameters(774), "774"),
        (parameters(999_999), "1.0 M"),
        (parameters(7_000_000_000), "7.0 B"),
    ],
)
def test_figures_for_people(shown, expected):
    assert shown == expected


def test_plot_draws_losses_metric_and_baselines(tmp_path):
    plain = plot_history(history(), tmp_path / "loss.png", "accuracy")
    compared = plot_history(history(), tmp_path / "b.png", "accuracy", baselines={"majority class": 0.4})
    picture, other = pixels(plain), pixels(compared)
    assert picture.shape[1] >= 1000
    assert (picture[..., :3] < 0.9).any()
    assert (picture != other).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "loss.png"]


def test_plot_without_evaluations_has_one_panel_and_without_losses_none(tmp_path):
    losses = [row for row in history() if "loss" in row]
    one = pixels(plot_history(losses, tmp_path / "one.png", "accuracy"))
    two = pixels(plot_history(history(), tmp_path / "two.png", "accuracy"))
    assert one.shape[0] < two.shape[0]
    assert plot_history([{"step": 1, "learning_rate": 0.1}], tmp_path / "none.png", "accuracy") is None
    assert not (tmp_path / "none.png").exists()


def test_plot_survives_nan_and_a_single_point(tmp_path):
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_accuracy": 0.5}]
    assert plot_history(rows, tmp_path / "loss.png", "accuracy").is_file()


def test_plot_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    backend, open_figures = plt.get_backend(), plt.get_fignums()
    plot_history(history(), tmp_path / "loss.png", "accuracy")
    assert (plt.get_backend(), plt.get_fignums()) == (backend, open_figures)


def test_report_holds_all_there_is_to_know(tmp_path):
    path = write_report(
        tmp_path / "report.md",
        title="lora on reviews",
        rows=ROWS,
        metrics=["accuracy", "f1"],
        recipe_yaml="version: 1\nmodel:\n  name: bert\n",
        tables=TABLES,
        sizes={"train": 6000, "test": 1215},
        notes=["915 rows dropped."],
        environment={"torch": "2.15"},
        picture="loss.png",
    )
    said = path.read_text()
    assert said.startswith("# lora on reviews\n")
    assert markdown_table(ROWS, ["accuracy", "f1"]) in said
    assert "| a\\|b | **10** | 2 |" in said
    assert "## Confusion matrix\n\nA row is the true class.\n\n" in said
    assert "| c | 1,203 |" in said
    for part in (
        "](loss.png)",
        "train 6,000, test 1,215",
        "- 915 rows dropped.",
        "```yaml\nversion: 1",
        "- torch: 2.15",
    ):
        assert part in said
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
