"""Detector heads, one paper a file: losses, detections, and what else a head knows about itself."""
