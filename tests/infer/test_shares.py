"""A job on several processes: every image and every tile is some process's, and no two processes'."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyspeck.errors import UserError
from flyspeck.infer.processes import Processes
from flyspeck.infer.reading import Share


@given(world=st.integers(1, 40), count=st.integers(0, 300))
def test_tiles_are_dealt_out_whole_and_evenly(world: int, count: int) -> None:
    shares = [Share(rank, world, "tiles") for rank in range(world)]
    assert [row for share in shares for row in share.rows(count)] == list(range(count))
    sizes = [len(share.rows(count)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(share.has(number) for share in shares for number in range(5))


@given(world=st.integers(1, 40), number=st.integers(0, 300))
def test_an_image_is_one_process_s_and_whole(world: int, number: int) -> None:
    shares = [Share(rank, world, "images") for rank in range(world)]
    assert [share.rank for share in shares if share.has(number)] == [number % world]
    assert all(share.rows(17) == range(17) for share in shares)


@given(world=st.integers(1, 40), images=st.integers(0, 300))
def test_few_images_are_shared_by_tiles_and_many_whole(world: int, images: int) -> None:
    """Four images a process are enough to deal them out: fewer would leave processes idle."""
    for rank in range(world):
        share = Processes(rank, world).share(images)
        assert (share.rank, share.world) == (rank, world)
        assert share.by == ("images" if images >= 4 * world else "tiles")


def test_what_the_launcher_says() -> None:
    said = {"WORLD_SIZE": "6", "RANK": "4", "LOCAL_RANK": "1"}
    processes = Processes.from_environment(said)
    assert (processes.rank, processes.world, processes.local) == (4, 6, 1)
    assert not processes.leads
    assert Processes.from_environment({**said, "RANK": "0"}).leads
    assert processes.device("cuda") == "cuda:1"
    assert [processes.device(asked) for asked in ("cpu", "cuda:3")] == ["cpu", "cuda:3"]
    alone = Processes.from_environment({})
    assert (alone.rank, alone.world, alone.leads, alone.device("cuda")) == (0, 1, True, "cuda")
    with pytest.raises(UserError, match="the launcher gave no numbers"):
        Processes.from_environment({"WORLD_SIZE": "two"})


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_number_beyond_the_others_is_refused(rank: int, world: int) -> None:
    with pytest.raises(UserError, match=f"process {rank} of {world}"):
        Share(rank, world)
