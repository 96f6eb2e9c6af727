"""Necks: a list of feature maps in, a pyramid out."""
