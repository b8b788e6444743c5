"""The app: the verbs in the order of the help, the start screen, and how every verb's errors end."""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from adapterlab.cli import browse, convert, deploy, environment, plan, show, train, use
from adapterlab.cli.console import out, report_error
from adapterlab.errors import AdapterLabError, ConfigError, unknown_name


class Verb(TyperCommand):
    """A command whose help ends with examples to paste."""

    examples: tuple[str, ...] = ()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_examples(self.examples)


class Verbs(TyperGroup):
    """Ends a verb that failed with a message and exit code 2, and one that was interrupted with 130."""

    examples = ("adapterlab train quickstart", 'adapterlab predict runs/quickstart "What a lovely surprise!"')

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_examples(self.examples)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and name not in self.commands:
            raise ConfigError(unknown_name("command", name, self.commands, "See adapterlab --help."))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AdapterLabError as error:
            report_error(error)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # `| head` has read enough; click knows what to do
                raise
            report_error(_word(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            report_error("interrupted.")
            raise typer.Exit(130) from None


def _word(error: OSError) -> str:
    """Say in one line what the system refused, and on which file."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {reason}." if error.filename is not None else f"{reason}."


def _print_examples(examples: tuple[str, ...]) -> None:
    # Not an epilog: rich would wrap it, and a wrapped command can't be pasted.
    console = out()
    console.print(f" [bold]Example{'s' if len(examples) > 1 else ''}[/bold]")
    for example in examples:
        command, mark, comment = example.partition("  #")
        console.print(f"   {command}", markup=False, highlight=False, soft_wrap=True, end="")
        console.print(mark + comment, markup=False, highlight=False, soft_wrap=True, style="dim")
    console.print()


app = typer.Typer(
    cls=Verbs,
    help="Plug small trainable adapters into a frozen BERT or GPT, train only them, ship the result.",
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)

for panel, functions in (
    ("Look around", (browse.ls, browse.methods, browse.tasks, show.show, browse.cp, browse.schema, environment.env)),
    ("Train", (train.validate, plan.estimate, train.train, plan.sweep)),
    ("Use", (use.evaluate, use.predict, convert.convert)),
    ("Deploy", (deploy.merge, deploy.quantize)),
):
    for function in functions:
        verb = type("Verb", (Verb,), {"examples": getattr(function, "examples", ())})
        name = "eval" if function is use.evaluate else function.__name__
        app.command(name, cls=verb, rich_help_panel=panel)(function)


@app.callback()
def start(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    from adapterlab import __version__

    if version:
        out().print(f"adapterlab {__version__}", highlight=False)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        out().print(START.format(version=__version__), highlight=False)


START = """
[bold]adapterlab[/bold] {version}
Plug small trainable adapters into a frozen BERT or GPT, train only them, ship the result.

  [cyan]adapterlab train quickstart[/cyan]           train one now, in a few minutes on a CPU
  [cyan]adapterlab predict runs/quickstart[/cyan] …  and use it
  [cyan]adapterlab ls[/cyan]                         the recipes that come with it
  [cyan]adapterlab methods[/cyan]                    the adapter methods and their options
  [cyan]adapterlab tasks[/cyan]                      the tasks, what they read and how they are measured
  [cyan]adapterlab --help[/cyan]                     everything else
"""
