"""Recipes, the one visible training loop, and what it needs."""

from flyspeck.callable_package import make_callable

make_callable(__name__, "flyspeck.train.trained:train")  # `flyspeck.train(...)`
