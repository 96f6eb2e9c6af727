"""Models that leave Python, with the same boxes."""
