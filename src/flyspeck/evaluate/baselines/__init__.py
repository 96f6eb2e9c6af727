"""Answers that need no network, so that a number has something beside it: nothing, blobs, and the best constants."""

from flyspeck.evaluate.baselines.measure import Baselines, fit_baselines, measure_baselines
from flyspeck.evaluate.baselines.values import Baseline, baseline_cells, baseline_text

__all__ = ["Baseline", "Baselines", "baseline_cells", "baseline_text", "fit_baselines", "measure_baselines"]
