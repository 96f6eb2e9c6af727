"""A trained detector to give away: its card, its figures with intervals, its weights."""
