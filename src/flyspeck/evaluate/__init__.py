"""Protocols by name: exact numbers by size."""
