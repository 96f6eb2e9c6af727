"""The seed of each training step: what is random in a network follows from where the run stands, and from nothing else."""


def step_seed(seed: int, step: int, process: int) -> int:
    """Different for every step, and for every process of a run."""
    return (seed * 1_000_003 + step) * 1009 + process
