"""Backbones: pictures in, one feature map per stage out."""
