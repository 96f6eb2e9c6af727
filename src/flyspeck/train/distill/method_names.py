"""What `distill.method` may name, and the terms of the methods that are compared with the hierarchical one."""

from __future__ import annotations

from typing import Literal

MethodName = Literal[
    "none",
    "response",
    "single",
    "hierarchical",
    "fine_grained",
    "attention_guided",
    "overhaul",
    "fgd",
    "decoupled",
    "instance_conditional",
    "relational",
]
"""Every method by name."""

METHOD_TERMS: dict[str, dict[str, float]] = {
    "fine_grained": {"imitation": 1.0},
    "attention_guided": {"attention": 1.0, "masked": 1.0, "non_local": 1.0},
    "overhaul": {"margin": 1.0},
    "fgd": {"objects": 1.0, "background": 0.5, "attention": 1.0, "global": 1.0},
    "decoupled": {"objects": 1.0, "background": 1.0},
    "instance_conditional": {"instances": 1.0, "auxiliary": 1.0},
    "relational": {"pixels": 1.0, "objects": 1.0},
}
"""The terms of a paper's method, each with the weight that it has where the recipe's `distill.terms` does not say another.

The papers print weights of sums over cells and channels, which fit the size of one network's maps; here terms are means, in
units of the teacher's map. Of printed weights the ratio is kept where two terms are sums of one kind (`fgd`: 2 to 1).
"""
