"""Dynamic down-sampling (DPNet)."""
