"""What the verbs share: the two consoles, notes and errors on stderr, examples, and loading a recipe."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

    from adapterlab.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])


def examples(*lines: str) -> Callable[[F], F]:
    """Give a verb the examples with which its help ends."""

    def give(function: F) -> F:
        function.examples = lines  # type: ignore[attr-defined]
        return function

    return give


def out() -> Console:
    """Return the console on stdout, for results; a new one, so that it follows a redirected stdout."""
    from rich.console import Console

    return Console()


def err() -> Console:
    """Return the console on stderr, for everything that is not a result."""
    from rich.console import Console

    return Console(stderr=True)


def is_main_process() -> bool:
    """Whether this is the process that speaks, of several started by a launcher."""
    return os.environ.get("RANK", "0") == "0"


def report_error(error: object) -> None:
    """Print an error on stderr as it is, without markup and without breaking its lines."""
    process = "" if is_main_process() else f" in process {os.environ['RANK']}"
    _say(f"error{process}: ", "bold red", str(error))


def note(text: str) -> None:
    """Print a remark on stderr."""
    if is_main_process():
        _say("note: ", "bold yellow", text)


def done(text: str) -> None:
    """Print on stderr that something worked."""
    if is_main_process():
        _say("", "green", text)


def _say(label: str, style: str, text: str) -> None:
    from rich.text import Text

    err().print(Text.assemble((label, style), text), soft_wrap=True)


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Show on a terminal that something slow is under way."""
    console = err()
    if not (console.is_terminal and is_main_process()):
        yield
        return
    with console.status(text):
        yield


def load(recipe: str, overrides: Sequence[str] | None) -> Recipe:
    """Load and check a recipe; what its author would want to know is printed as a note."""
    with warnings.catch_warnings(record=True) as caught, busy("checking the recipe"):
        from adapterlab.recipe import RecipeNote, load_recipe

        warnings.simplefilter("always", RecipeNote)
        loaded = load_recipe(recipe, overrides or ())
    for warning in caught:
        if issubclass(warning.category, RecipeNote):
            note(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return loaded
