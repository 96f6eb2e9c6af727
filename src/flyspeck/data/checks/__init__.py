"""Checks of a data set for what ruins experiments: duplicates, leaks between splits, doubtful boxes; and how to mend them."""
