"""The verb that exchanges adapters with another library: convert."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from adapterlab.cli.console import busy, done, examples, note


class Side(StrEnum):
    """Whose form to write."""

    adapterhub = "adapterhub"
    adapterlab = "adapterlab"


@examples(
    "adapterlab convert downloads/sst-2 adapters/sst-2",
    "adapterlab convert runs/quickstart hub/quickstart --name quickstart   # and the other way",
)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="An adapter folder of AdapterHub; or of ours or peft's, or a run.")
    ],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A folder that doesn't exist yet, or is empty.")],
    to: Annotated[
        Side | None, typer.Option("--to", help="Whose form to write. Default: the one that SRC isn't in.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What to call the adapter in AdapterHub. Default: as in SRC.")
    ] = None,
    model_class: Annotated[
        str | None,
        typer.Option("--model-class", metavar="CLASS", help="Class of the model to load it into. Default: as in SRC."),
    ] = None,
) -> None:
    """Convert an adapter of the `adapters` library (AdapterHub) into one of ours, or back.

    Bottleneck adapters, LoRA and prefix tuning, with their heads for classification. The backbone isn't needed.
    What the other side can't express is refused, by the name of the field.
    """
    with busy("converting"):
        from adapterlab.converting import convert as convert_folder

        converted = convert_folder(source, destination, to.value if to else None, name=name, model_class=model_class)
    for remark in converted.notes:
        note(remark)
    kind = f"{converted.method} adapter for {converted.model_class or converted.model_type}"
    done(f"{kind}, in the form of {converted.to}, in {converted.folder}")
    done(f"next: {_next(converted.to, converted.folder)}")


def _next(to: str, folder: Path) -> str:
    if to == Side.adapterlab:
        return f"adapterlab.load(model, {str(folder)!r})"
    return f"model.load_adapter({str(folder)!r}, use_safetensors=True, set_active=True)   # with the adapters library"
