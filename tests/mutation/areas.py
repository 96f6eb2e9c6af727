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
            "tests/data/test_transforms.py", "tests/data/test_transform_rules.py", "tests/data/test_rotate.py",
            "tests/data/test_zoom.py",
            "tests/data/test_copy_paste.py", "tests/data/test_mosaic.py", "tests/data/test_policy.py",
        ),
    ),
    "resume": (
        ("flyspeck/train/checkpoint.py", "flyspeck/train/state.py", "flyspeck/infer/resume.py", "flyspeck/files.py"),
        (
            *("tests/train/test_checkpoint.py", "tests/train/test_train_state.py", "tests/train/test_killed_runs.py"),
            *("tests/train/test_run.py", "tests/infer/test_tile_journal.py", "tests/test_files.py"),
            "tests/test_stored_values.py",
        ),
    ),
    "export: the comparison": (
        ("flyspeck/export/parity.py", "flyspeck/export/undecided.py"),
        ("tests/export/test_parity.py", "tests/export/test_parity_rules.py"),
    ),
    "export: the graph": (  # of test_decoding, whose tests are of all heads, those of a kind
        tuple(f"flyspeck/export/{name}.py" for name in ("frame", "graph", "metadata", "onnx", "package", "proof", "tiny_form")),
        (
            *(f"tests/export/test_{name}.py" for name in ("frame", "package", "exported_page", "parity", "parity_rules")),
            *(
                f"tests/export/test_decoding.py::test_{name}"
                for name in (
                    "a_head_that_needs_no_suppression_has_none_in_its_graph",
                    "private_norms_of_a_tower_are_folded", "what_a_graph_cannot_hold_is_refused",
                )
            ),
        ),
    ),
}  # fmt: skip
"""Area to modules (as patterns below `src`) and tests."""

_READERS, _MERGE = "flyspeck/data/readers/", "flyspeck/infer/"
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (f"{_MERGE}merge.py", "if not len(a):", "not len(a) → (len(a))"):
        "the rounds before the walk only save time: the walk alone settles the same rows",
    (f"{_MERGE}pairs.py", "layer - layer.min(initial=0)", "layer - layer.min(initial=0) → (layer + layer.min(initial=0))"):
        "any constant added to all layers keeps them apart",
    ("flyspeck/evaluate/merging.py", "np.float64).reshape(-1, 4)", "1 → (1 + 1)"):
        "NumPy takes every negative length for the one that is left to it",
    ("flyspeck/export/parity.py", "(len(mine), len(theirs)), -1.0)", "1.0 → (1.0 + 1)"):
        "any number below what is compared with it says that nothing overlaps",
    ("flyspeck/export/parity.py", "np.any((px <= BOX_PX)", "px <= BOX_PX → (px < BOX_PX)"):
        "differs where a side is off by the limit to the last bit",
    ("flyspeck/export/parity.py", "apart <= SCORE", "apart <= SCORE → (apart < SCORE)"):
        "differs where a score is off by the limit to the last bit",
    ("flyspeck/export/parity.py", "            break", "break → continue"):
        "the further rounds find nothing: it only saves time",
    ("flyspeck/export/parity.py", "border = (ahead >= 0)", "ahead >= 0 → (ahead > 0)"):
        "of equal scores, either box is excused already",
    ("flyspeck/data/transforms.py", "if (tall, wide) != (y2 - y1", "y2 - y1 → (y2 + y1)"):
        "fills a part of the mosaic that the piece covers next",
    ("flyspeck/data/transforms.py", "torch.equal(whole[1], whole[2]))", "1 → (1 + 1)"):
        "of the first pair: two channels that equal the third equal each other (the others are noticed)",
    (f"{_READERS}assemble.py", "np.arange(1, count + 1)", "1 → (1 + 1)"):
        "of the end: one number more than rows, which no row asks for (of the begin, all arrays differ in length and tests fail)",
    (f"{_READERS}assemble.py", "zip(names, draft.category_ids, strict=True)", "True → False"):
        "both lists are made together; strict= only guards against a fault elsewhere",
    (f"{_READERS}dota.py", "draft.add_box(row, box, -2", "2 → (2 + 1)"):
        "the categories of all boxes are filled in at the end",
    (f"{_READERS}supervisely.py", "if all(0 < side < 2**31 for side in sides)", "2 → (2 + 1)"):
        "`add_image` asks once more whether a size is below 2**31",
    (f"{_READERS}table.py", "0 < width < 2**31 else (-1, -1)", "1 → (1 + 1)"):
        "`add_image` takes every size that is not positive for unknown",
    (f"{_READERS}values.py", "count=1))", "1 → (1 + 1)"):
        "the pattern holds the beginning of the text, where it can stand only once",
    ("flyspeck/data/copy_paste.py", "if rng.random() >=", "rng.random() >= self.probability → (rng.random() > self.probability)"):
        "differs where a random number of 53 bits equals the probability",
    ("flyspeck/data/copy_paste.py", "own = rng.random() < 0.5", "rng.random() < 0.5 → (rng.random() <= 0.5)"):
        "differs where a random number of 53 bits is 0.5",
}  # fmt: skip
"""(file, a piece of the line, change) of a survivor to why no test can notice it."""


def why(file: str, code: str, change: str) -> str:
    """Why nothing can notice a change of a line of code; empty where that is not known."""
    for (place, piece, what), reason in EQUIVALENT.items():
        there = (
            code.startswith(piece) if piece[0] == " " else piece in code
        )  # an indented piece is a line from its beginning
        if place == file and what == change and there:
            return reason
    return ""
