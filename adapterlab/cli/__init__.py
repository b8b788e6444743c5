"""The command line. Verbs are thin: each reads arguments, calls the library, prints what came back."""

from __future__ import annotations


def main() -> None:
    """Run the command line on `sys.argv`."""
    from adapterlab.cli.app import app

    app(prog_name="adapterlab")
