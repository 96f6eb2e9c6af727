"""Knowledge distillation: a small student learns from the ground truth and from what a large teacher computes.

`terms` and `regions` are the equations, `response` the baseline that uses only final outputs, `objective` joins them with
the detector's own losses, `methods` has those of other papers, `cache` keeps a teacher's outputs on disk, `stages` runs
teacher, student and fine-tuning.
"""
