"""A trained detector to give away: its card, its metrics with intervals, its weights."""
