"""Recipes, the one visible training loop, and what it needs."""
