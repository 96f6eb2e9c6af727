"""The campaign over everything that is read: minutes of it by `-m fuzz`, and what its verdicts rest on."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import elsewhere
import hostile
import numpy as np
import pytest
import yaml
from campaign import Findings, again, campaign
from containers import damaged
from media_seeds import images, npz_set
from oracle import ANSWER, LINE, judged
from PIL import Image
from planted_faults import FAULTS, ROOT, Fault, looked_for

from flyspeck.errors import UserError


@pytest.mark.fuzz
def test_a_campaign(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """`-m fuzz`: two minutes, or `--fuzz-minutes N`; a new seed every time, printed, or `--fuzz-seed N`."""
    minutes = request.config.getoption("--fuzz-minutes")
    seed = request.config.getoption("--fuzz-seed")
    seed = int(time.time()) if seed is None else seed
    with capsys.disabled():
        print(f"\nfuzzing for {minutes:g} minutes, --fuzz-seed {seed}", flush=True)
    found = campaign(seed=seed, minutes=minutes)
    with capsys.disabled():
        print(found.text())
    kept = request.config.getoption("--fuzz-json")
    if kept:
        Path(kept).write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    assert not found.clusters, f"look at one with: python tests/fuzz/campaign.py --again {seed}:NUMBER\n{found.text()}"


def effect(path: Path) -> None:
    path.parent.joinpath("outside.txt").write_text("x")


def connect() -> None:
    with socket.socket() as one:
        one.settimeout(0.1)
        one.connect(("127.0.0.1", 9))


def start() -> None:
    subprocess.run([sys.executable, "--version"], check=True, capture_output=True)


def refuse(text: str) -> None:
    raise UserError(text)


def test_the_oracle_sees_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    assert judged(lambda: [1], writes=work).kind == ANSWER
    assert judged(lambda: refuse("wrong"), writes=work).kind == LINE
    assert judged(lambda: 1 / 0, writes=work).kind == "traceback"
    assert judged(lambda: sys.exit(3), writes=work).kind == "traceback"
    assert judged(lambda: effect(work), writes=work).kind == "effect"
    assert judged(lambda: [(work / "inside.txt").write_text("x")], writes=work).kind == ANSWER
    assert judged(connect, writes=work).kind != ANSWER
    assert judged(start, writes=work).kind == "effect"
    assert judged(lambda: os.remove(tmp_path / "absent"), writes=work).kind == "traceback"
    with monkeypatch.context() as patch:
        patch.setattr("oracle.SECONDS", 0.2)
        assert judged(lambda: time.sleep(30), writes=work).kind == "hang"
        assert judged(lambda: [n for n in range(10**12) if n < 0], writes=work).kind == "hang"
    monkeypatch.setattr("oracle.MEGABYTES", 100)
    assert judged(lambda: np.ones(400 << 17).sum(), writes=work).kind == "memory"


def test_commands_are_judged_by_their_code(tmp_path: Path) -> None:
    def said(code: int, text: str) -> int:
        print(text, file=sys.stderr)
        return code

    assert judged(lambda: said(0, "x"), writes=tmp_path).kind == ANSWER
    assert judged(lambda: said(2, "note: a\nerror: b"), writes=tmp_path).kind == LINE
    assert judged(lambda: said(2, "error: a\nerror: b"), writes=tmp_path).kind == "several lines"
    assert judged(lambda: said(2, "nothing"), writes=tmp_path).kind == "several lines"
    assert judged(lambda: said(1, "error: a fault"), writes=tmp_path).kind == "traceback"


def test_equal_findings_are_one_cluster() -> None:
    found = Findings(7)
    record = {"surface_kind": "images", "surface": "images a", "kind": "traceback", "what": "x:1", "detail": "d"}
    for number in range(3):
        found.take({**record, "number": number})
    found.take({**record, "number": 3, "kind": "answer"})
    content = found.to_json()
    assert content["inputs"] == 4
    assert content["by_kind"] == {"images": {"answer": 1, "traceback": 3}}
    assert [(one["count"], one["number"]) for one in content["clusters"]] == [(3, 0)]
    assert "FOUND 3x traceback: x:1; images a, 7:0" in found.text()


@pytest.mark.parametrize("name", [*images(), *npz_set()])
def test_damage_is_a_function_of_its_seed(name: str) -> None:
    content = {**images(), **npz_set()}[name]
    made = [damaged(content, np.random.default_rng([3, number])) for number in range(12)]
    assert made == [damaged(content, np.random.default_rng([3, number])) for number in range(12)]
    assert sum(one != content for one in made) > 6


def test_a_few_of_every_campaign(tmp_path: Path) -> None:
    """Some inputs of a fixed seed, in this process: the bench works."""
    from campaign import Bench

    bench = Bench(tmp_path / "bench")
    bench.order = [one for one in bench.surfaces if one.kind in ("annotations", "images", "lists and journals")]
    records = [bench.one(5, number) for number in range(60)]
    assert {record["kind"] for record in records} == {ANSWER, LINE}


def test_hostile_files_are_made(tmp_path: Path) -> None:
    """Each is what it says: a bomb is a sound image, a pickled call is one, a name of a file leads elsewhere."""
    assert pickle.loads(hostile.pickled_call())["data"] == os.getcwd()
    assert judged(lambda: [pickle.loads(hostile.pickled_call())], writes=tmp_path).kind == "effect"
    with Image.open(io.BytesIO(hostile.png_bomb(800))) as image:
        assert np.asarray(image).sum() == 0
        assert image.size == (800, 800)
    rng = np.random.default_rng(1)
    places = {elsewhere.sent_elsewhere(b'{"file_name": "a/b.png", "id": 3}', rng) for _ in range(400)}
    assert len(places) == sum(map(len, elsewhere.PLACES.values()))
    assert all(place.startswith(b'{"file_name": "') and place.endswith(b'", "id": 3}') for place in places)
    assert yaml.safe_load(hostile.bomb(b"a: 1\nb: 2\n", np.random.default_rng(2)))["z0"] == ["x", "x"]
    assert b"&e" in hostile.bomb(b"<?xml version='1.0'?><a><b>c</b></a>", rng)
    assert hostile.bomb(b'{"a": 1}', rng) == b'{"a": 1}'
    assert {len(hostile.disguised(rng)) for _ in range(200)} >= {len(hostile.pickled_call()), len(hostile.png_bomb())}


def test_connections_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        monkeypatch.setattr(elsewhere, "PORT", listening.getsockname()[1])
        listening.listen()
        with elsewhere.listening() as found:
            assert found is None  # somebody else listens there
    with elsewhere.listening() as found:
        assert found is not None
        assert found.count() == 0
        for number in (1, 2):
            with found.watched([]) as seen, socket.create_connection(("127.0.0.1", elsewhere.PORT)):
                pass
            assert seen == ["a connection"]
            assert found.count() == number
        with found.watched([]) as seen:
            pass
        assert not seen


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of opened files on Linux alone")
def test_files_that_are_opened_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Python, by a library in C, by another process; looking whether one is there is nothing."""
    monkeypatch.setattr(elsewhere, "PORT", 45998)
    bait, other = tmp_path / "bait.png", tmp_path / "other.png"
    for path in (bait, other):
        Image.new("L", (4, 3)).save(path)
    opens = (
        lambda: Image.open(bait).close(),
        lambda: shutil.copyfile(bait, tmp_path / "copy.png"),
        lambda: subprocess.run(["cat", str(bait)], check=True, capture_output=True),
    )
    with elsewhere.listening() as found:
        assert found is not None
        for opened in opens:
            with found.watched([bait, other]) as seen:
                opened()
            assert seen == ["a file elsewhere was opened: bait.png"]
        with found.watched([bait, other]) as seen:
            assert bait.stat().st_size
            assert bait.is_file()
        assert not seen


def test_what_refers_elsewhere_is_seen_by_its_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VRT that GDAL is let follow reads the file elsewhere, or connects: the bench says so of either."""
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    from campaign import Bench

    monkeypatch.setattr(elsewhere, "PORT", 45999)
    monkeypatch.setattr("flyspeck.infer.opening.check_references", lambda path, driver: None)
    bench = Bench(tmp_path, kinds="rasters")
    bench.order = [one for one in bench.surfaces if one.name == "vrt"]
    assert bench.order
    for place, seen in (("../beside.png", "opened: beside.png"), ("http://127.0.0.1:45999/a.png", "a connection")):
        text = elsewhere.mosaic(place, relative=True).encode()
        monkeypatch.setattr("containers.damaged", lambda content, rng, text=text: text)
        with elsewhere.listening() as bench.elsewhere:
            record = bench.one(1, 1)
        assert record["kind"] == "effect"
        assert seen in record["what"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_are_planted_where_the_code_is(fault: Fault, tmp_path: Path) -> None:
    path = tmp_path / "flyspeck" / fault.file
    path.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / "src" / "flyspeck" / fault.file, path)
    fault.plant(tmp_path)
    compile(path.read_text(encoding="utf-8"), str(path), "exec")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Nine of ten must be (`planted_faults.py` counts them); here each for itself, with the fixed seed of the page."""
    found = looked_for(fault, seed=1, minutes=request.config.getoption("--fuzz-minutes"), once=tmp_path)
    assert found["found"], found


@pytest.mark.slow
def test_every_surface_takes_its_sound_files(tmp_path: Path) -> None:
    """A surface that refuses what is sound would try nothing."""
    from campaign import Bench

    bench = Bench(tmp_path / "bench")
    for number, surface in enumerate(bench.surfaces):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert surface.make(folder)
        outcome = judged(lambda surface=surface, folder=folder: surface.use(folder), writes=folder / surface.out)
        assert outcome.kind == ANSWER, f"{surface.kind} {surface.name}: {outcome}"
    assert again(1, 1)["kind"] in (ANSWER, LINE)


def test_guided_fuzzing_says_what_it_needs() -> None:
    """Without atheris one line; with it the surfaces that can be named."""
    command = [
        sys.executable,
        "-c",
        "import sys; sys.modules['atheris'] = None; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')",
    ]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("guided.py"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "atheris is not installed: python -m pip install atheris (Linux, Python 3.11)"
