"""Label assigners behind one contract (`base.Assigner`): which prior of a head learns which object.

One paper, one file: `max_iou` (Faster R-CNN), `nwd`, `simd`, `rfla`. `build.build_assigner` makes one from its name.
"""
