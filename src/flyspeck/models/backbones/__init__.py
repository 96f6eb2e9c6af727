"""Backbones: images in, one feature map per stage out."""
