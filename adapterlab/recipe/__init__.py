"""Recipes: the schema, the strict loader, and the catalogue of shipped ones."""

from __future__ import annotations

from adapterlab.recipe.draft import RecipeNote, read_pair
from adapterlab.recipe.load import dump_recipe, load_recipe
from adapterlab.recipe.schema import Recipe

__all__ = ["Recipe", "RecipeNote", "dump_recipe", "load_recipe", "read_pair"]
