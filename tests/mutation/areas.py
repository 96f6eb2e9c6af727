"""Which modules are mutated, which tests are near them, and which survivors change nothing that anybody could see."""

from __future__ import annotations

AREAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "merge": (
        ("flyspeck/infer/merge.py", "flyspeck/infer/pairs.py", "flyspeck/evaluate/merging.py"),
        tuple(
            f"tests/{name}.py"
            for name in ("infer/test_merge", "infer/test_merge_edges", "infer/test_pairs", "evaluate/test_merging")
        ),
    ),
    "readers": (
        ("flyspeck/data/readers/*.py",),
        ("tests/data/readers", "tests/fuzz/test_fuzz_readers.py", "tests/data/test_round_trips.py", "tests/data/test_outside.py"),
    ),
    "transforms": (
        ("flyspeck/data/transforms.py", "flyspeck/data/rotate.py", "flyspeck/data/zoom.py", "flyspeck/data/copy_paste.py"),
        (
            "tests/data/test_transforms.py", "tests/data/test_rotate.py", "tests/data/test_zoom.py",
            "tests/data/test_copy_paste.py", "tests/data/test_mosaic.py", "tests/data/test_policy.py",
        ),
    ),
    "resume": (
        ("flyspeck/train/checkpoint.py", "flyspeck/train/state.py", "flyspeck/infer/resume.py", "flyspeck/files.py"),
        ("tests/train/test_checkpoint.py", "tests/train/test_killed_runs.py", "tests/train/test_run.py", "tests/test_files.py"),
    ),
    "export": (
        tuple(
            f"flyspeck/export/{name}.py"
            for name in ("frame", "graph", "metadata", "onnx", "package", "parity", "proof", "tiny_form")
        ),
        ("tests/export",),
    ),
}  # fmt: skip
"""Area to modules (as patterns below `src`) and tests."""

EQUIVALENT: dict[tuple[str, str], str] = {}
"""(file, change) of a survivor to why no test can notice it."""
