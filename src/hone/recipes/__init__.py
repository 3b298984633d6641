"""Recipes: TOML files that say what a run does, and the runner that does it stage by stage.

A stage reads what earlier stages wrote and writes its own folder, whole or not at all. What a
stage does is in the rooms above; this room only connects them.
"""

from hone.recipes.assistant import Answer, Assistant
from hone.recipes.settings import Recipe, builtin_recipes, load_recipe

__all__ = ["Answer", "Assistant", "Recipe", "builtin_recipes", "load_recipe"]
