"""Answers that need no network, so that a number has something beside it: nothing, blobs, and the best constants."""

from flyspeck.evaluate.baselines.measure import Baseline, Baselines, fit_baselines, measure_baselines

__all__ = ["Baseline", "Baselines", "fit_baselines", "measure_baselines"]
