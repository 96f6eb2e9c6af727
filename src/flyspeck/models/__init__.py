"""Detectors as backbone, neck and head: three plain modules with small contracts."""
