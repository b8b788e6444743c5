"""No shipped recipe goes untested: each test module of this folder names in RECIPES those that it runs."""

from __future__ import annotations

import importlib
from pathlib import Path

from adapterlab.recipe import catalog


def test_every_shipped_recipe_is_run_by_a_test():
    modules = [importlib.import_module(file.stem) for file in Path(__file__).parent.glob("test_*.py")]
    run = {name for module in modules for name in getattr(module, "RECIPES", ())}
    assert set(catalog.shipped()) == run
