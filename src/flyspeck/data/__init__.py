"""Annotations in, samples out: formats, the one box policy, tiles, transforms, loading."""
