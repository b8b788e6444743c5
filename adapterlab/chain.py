"""The chain: adapters of earlier runs that a backbone gets before a new one, merged into it or frozen beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from adapterlab.adapter_folder import EXTRA, WEIGHTS, AdapterFiles, read
from adapterlab.attaching import activate
from adapterlab.errors import AdapterFolderError
from adapterlab.guests import guests_of, need_guests
from adapterlab.loading import load, local_folder
from adapterlab.merging import merge
from adapterlab.new_tokens import equip

Link = dict[
    str, str
]  # as adapterlab.json keeps it: adapter (an address), sha256 (of its weights), kept (merged, beside)


def lay(model: nn.Module, tokenizer: Any, sources: Sequence[str | Mapping[str, str]]) -> list[Link]:
    """Put adapters into a backbone for good, those that they were themselves trained on before them.

    Their heads are left behind; tokens that they bring are added to the tokenizer. Adapters in one list were trained
    on the same backbone; if the methods of all of them merge they are merged, else all stay beside what is attached
    later: they take part in forward and are never trained.

    Args:
        model: the backbone, with no adapter or those of another chain.
        tokenizer: its tokenizer.
        sources: run folders, adapter folders or Hub ids; or links that `lay` returned, which must still fit.

    Returns:
        The links to record with the adapter that is trained on this.

    Raises:
        AdapterFolderError: one can't be read, is not for this backbone, or isn't the one that a link was made for.
        AdapterError: they can't be together, e.g. since they bring different new tokens.
    """
    links: list[Link] = []
    waiting: list[str] = []
    for source in sources:
        link = dict(source) if isinstance(source, Mapping) else {"adapter": str(source)}
        folder = local_folder(link["adapter"])
        files = read(folder)
        _verify(link, files)
        if below := files.extra.get("adapters"):
            _settle(model, waiting, links)
            waiting = []
            lay(model, tokenizer, below)
        name = f"chain-{len(guests_of(model).adapters) if guests_of(model) else 0}"  # type: ignore[union-attr]
        load(model, files.folder, name, heads=False)
        equip(tokenizer, model)
        is_local = Path(link["adapter"]).exists()
        links.append({"adapter": str(folder.resolve()) if is_local else link["adapter"], "sha256": digest(files)})
        need_guests(model).adapters[name].about = {"sha256": links[-1]["sha256"]}
        waiting.append(name)
    _settle(model, waiting, links)
    return links


def digest(files: AdapterFiles) -> str:
    """Return the SHA-256 of an adapter's weights."""
    return hashlib.sha256((files.folder / WEIGHTS).read_bytes()).hexdigest()


def _verify(link: Link, files: AdapterFiles) -> None:
    if link.get("sha256") not in (None, digest(files)):
        raise AdapterFolderError(
            f"the adapter in '{files.folder}' isn't the one that this one was trained on: its weights have changed "
            f"({EXTRA} names SHA-256 {link['sha256'][:12]}..., and it has {digest(files)[:12]}...). Put the old one "
            "back, or train anew on this one."
        )


def _settle(model: nn.Module, names: list[str], links: list[Link]) -> None:
    """Merge adapters that were loaded, or freeze them where they are; and write down which."""
    if not names:
        return
    guests = need_guests(model)
    merges = all(guest.method.merges for guest in guests.adapters.values())
    for link in links[-len(names) :]:
        link["kept"] = "merged" if merges else "beside"
    if merges:
        activate(model, names)
        merge(model)
        return
    for name in names:
        guests.adapters[name].frozen = True
    activate(model, names)
