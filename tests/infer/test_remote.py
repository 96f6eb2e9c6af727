"""Images at addresses, in whole jobs: by windows, whole, resumed, and without a word of what is secret."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from odd_server import OddServer, odd_server
from PIL import Image
from spots import geotiff, spots_model, spotted

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.infer.job import predict
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.remote import is_remote, remote_name
from flyspeck.infer.source import find_items, open_source
from flyspeck.infer.web import WebRule
from flyspeck.infer.windows import OpenOptions

pytest.importorskip("rasterio")

QUICK = OpenOptions(web=WebRule(timeout=0.5, retries=1, pause=0.01))
PLACES = [(40, 50), (900, 700), (1500, 1100)]
TRANSFORM = (0.1, 0, 500000.0, 0, -0.1, 4000000.0)
SECRET = "anna:s3cret@"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    noise = np.random.default_rng(0).integers(20, 120, (1200, 1600, 3), np.uint8)
    for x, y in PLACES:
        noise[y : y + 4, x : x + 4] = 250
    geotiff(
        folder / "a.tif", noise, TRANSFORM, "EPSG:32633", tiled=True, blockxsize=128, blockysize=128, interleave="pixel"
    )
    geotiff(folder / "small.tif", noise[:100, :100], TRANSFORM, "EPSG:32633")
    Image.fromarray(spotted((300, 400), [(40, 50)])).convert("RGB").save(folder / "p.jpg", quality=95)
    np.save(folder / "v.npy", spotted((60, 80), [(10, 20)]))
    (folder / "v.vrt").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    (folder / "t.jpg").write_text("<html>no image</html>")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[OddServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        with odd_server(folder) as server:
            yield server


@pytest.fixture(autouse=True)
def afresh(server: OddServer) -> None:
    server.log.clear()
    server.mood.clear()
    server.sent = 0


def test_only_the_parts_of_a_window_are_fetched(server: OddServer, folder: Path) -> None:
    whole = (folder / "a.tif").stat().st_size
    with open_source(folder / "a.tif") as here, open_source(item(server, "ok/a.tif"), QUICK) as there:
        assert (there.size, there.bands, there.geo, there.colours) == (here.size, here.bands, here.geo, here.colours)
        for window in [(0, 0, 64, 64), (850, 650, 1000, 800)]:
            assert_array_equal(there.read(*window), here.read(*window))
        assert 0 < server.sent < whole / 4
        assert_array_equal(there.read(0, 0, 1600, 1200, (75, 100)), here.read(0, 0, 1600, 1200, (75, 100)))
    assert {path for path, _ in server.log} == {"/ok/a.tif"}  # no files beside it


def item(server: OddServer, path: str):
    """What a job makes of the address."""
    (found,), _ = find_items([server.url(path)])
    return found.image


@pytest.mark.parametrize(
    "path", ["ok/p.jpg", "whole/p.jpg", "chunked/p.jpg", "whole/a.tif", "ok/small.tif", "ok/v.npy", "early-once/a.tif"]
)
def test_what_is_fetched_is_what_the_file_holds(server: OddServer, folder: Path, path: str) -> None:
    with open_source(folder / path.partition("/")[2]) as here, open_source(item(server, path), QUICK) as there:
        height, width = here.size
        assert there.size == here.size
        assert there.geo == here.geo
        assert_array_equal(there.read(0, 0, width, height), here.read(0, 0, width, height))


BROKEN = {
    "404/a.tif": r"no such file \(404\)",
    "403/a.tif": r"needs credentials with the name and password that were given \(403\)",
    "ok/t.jpg": "a page of text, no image",
    "ok/v.vrt": "a page of text, no image",
    "packed/a.tif": "packs the file",
    "wholelong/p.jpg": "ended early",
    "redirect/?to=file:///etc/hosts": "only http and https are followed",
}


@pytest.mark.parametrize("path", BROKEN)
def test_what_cannot_be_opened_is_one_line_that_names_the_address(server: OddServer, path: str) -> None:
    (found,), _ = find_items([server.url(path).replace("://", f"://{SECRET}")])
    with pytest.raises(UserError, match=BROKEN[path]) as caught:
        open_source(found.image, QUICK, name=found.name)
    assert str(caught.value).startswith(server.url(path).partition("?")[0])
    assert "s3cret" not in str(caught.value)
    assert "/tmp" not in str(caught.value)


@pytest.mark.parametrize("kind", ["stall", "early", "elsewhere", "changing"])
def test_a_window_that_does_not_come_is_a_hole(server: OddServer, kind: str) -> None:
    predictor = Predictor(lambda windows: [], tile=400, overlap=0, options=QUICK)
    predictor.model = lambda windows: [found_nothing(window) for window in windows]
    (result,) = predictor.stream([server.url(f"{kind}/a.tif")])
    assert result.problem is not None or result.holes
    text = str(result.problem or result.holes[0][1])
    assert any(word in text for word in ("no answer", "ended early", "another part", "changed", "cannot be read")), text


def found_nothing(window: np.ndarray):
    from flyspeck.types import Detections

    return Detections.empty(window.shape[:2], ("spot",))


def test_a_job_is_resumed_and_tells_no_secret(
    server: OddServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    seen, model = spots_model(monkeypatch, tmp_path, training_size=[400, 400])
    address = server.url("half/a.tif").replace("://", f"://{SECRET}") + "?X-Amz-Signature=abcdef"
    out = tmp_path / "found"
    asked = ["--model", str(model), "--out", str(out), "--to", "coco,csv,geojson,gpkg,yolo,label-studio,cvat"]
    # The server fails for the second half of the file: what was read of the first one stays.
    assert main(["predict", address, *asked, "--timeout", "0.5"]) == 2
    tiles = seen.windows
    assert 0 < tiles < 20  # 5 columns and 4 rows of tiles of 400 px that share 16
    failed = capsys.readouterr()
    assert "answers 500 (Internal Server Error), 4 times" in failed.err
    server.mood["healed"] = 1
    # The same file, with another signature: only what is missing is done.
    assert main(["predict", address.replace("abcdef", "fedcba"), *asked, "--resume", "--draw", "0"]) == 0
    whole = seen.windows
    assert whole == 20
    resumed = capsys.readouterr()
    assert f"resumed: {tiles} tiles kept" in resumed.out
    found = json.loads((out / "detections.json").read_text())
    assert [d["bbox"] for d in found] == [[x, y, 4, 4] for x, y in PLACES]
    (image,) = json.loads((out / "images.json").read_text())["images"]
    assert image["file_name"] == server.url("half/a.tif")
    assert (out / "labels/a.txt").is_file()
    assert (out / "geojson/a.geojson").is_file()
    texts = [failed.out, failed.err, resumed.out, resumed.err, caplog.text]
    texts += [path.read_bytes().decode("utf-8", "replace") for path in out.rglob("*") if path.is_file()]
    names = [str(path) for path in out.rglob("*")]
    for text in [*texts, *names]:
        assert not any(word in text for word in ("s3cret", "anna", "abcdef", "fedcba"))
    # A file that changed on the server is done anew.
    path = server.folder / "a.tif"
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    try:
        assert main(["predict", address, *asked, "--resume", "--draw", "0"]) == 0
    finally:
        path.write_bytes(content)
    assert seen.windows == 2 * whole


def test_addresses_beside_files_in_one_job(
    server: OddServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = spots_model(monkeypatch, tmp_path)
    given = [
        folder / "p.jpg",
        server.url("ok/p.jpg"),
        server.url("whole/p.jpg"),
        server.url("ok/p.jpg?b"),
        server.url("ok/p.jpg"),
    ]
    summary = predict(given, model=model, out=tmp_path / "found", formats=["coco", "yolo"], draw=0)
    assert (summary.images, summary.boxes) == (4, 4)  # the address that is given twice is one
    names = [image["file_name"] for image in json.loads((tmp_path / "found/images.json").read_text())["images"]]
    assert names == ["p.jpg", server.url("ok/p.jpg"), server.url("whole/p.jpg"), server.url("ok/p.jpg") + "#2"]
    assert len(list((tmp_path / "found/labels").iterdir())) == 4


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ftp://host/a.tif", "images are not read from ftp://; known: https, http, s3, gs, az"),
        ("file:///etc/hosts", "images are not read from file://"),
        ("/vsistdin/", "images are not read from vsistdin"),
        ("/vsizip//vsicurl/http://host/a.zip/a.tif", "images are not read from vsizip"),
    ],
)
def test_other_places_are_refused(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = spots_model(monkeypatch, tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    assert main(["predict", source, "--model", str(model), "--out", str(tmp_path / "found")]) == 2
    assert said in capsys.readouterr().err


def test_an_archive_here_is_read_through_gdal(folder: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(folder / "small.tif", "in/small.tif")
    path = f"/vsizip/{tmp_path}/a.zip/in/small.tif"
    (found,), _ = find_items([path])
    assert found.name == path
    with open_source(found.image, QUICK) as there, open_source(folder / "small.tif") as here:
        assert_array_equal(there.read(0, 0, 100, 100), here.read(0, 0, 100, 100))


def test_what_is_an_address() -> None:
    assert all(map(is_remote, ["https://a/b", "S3://a/b", "/vsicurl/http://a", "/vsizip/a.zip/b"]))
    assert not any(map(is_remote, ["a.tif", "C:/a.tif", "C:\\a", "a:b", "./https:/a", Path("a"), np.zeros(3)]))
    with pytest.raises(UserError, match="an address as a Path"):
        is_remote(Path("https://host/a.tif?token=x"))
    assert remote_name("/vsicurl/https://u:p@h/a.tif?s") == "https://h/a.tif"


def test_local_images_ask_no_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = spots_model(monkeypatch, tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    asked = {"formats": ["coco", "geojson", "gpkg"], "crs": "EPSG:4326", "draw": 0}
    predict(folder / "a.tif", model=model, out=tmp_path / "found", **asked)


CLOUD = {
    "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "AKIDOPEN",
    "AWS_SECRET_ACCESS_KEY": "s3cret", "AWS_EC2_METADATA_DISABLED": "true", "no_proxy": "*",
}  # fmt: skip


def test_s3_by_windows_and_its_refusals(
    server: OddServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for key, value in {**CLOUD, "AWS_S3_ENDPOINT": server.url("")[7:-1], "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    (found,), _ = find_items(["s3://ok/a.tif"])
    assert (found.name, found.output) == ("s3://ok/a.tif", "a")
    with open_source(folder / "a.tif") as here, open_source(found.image, QUICK, name=found.name) as there:
        assert (there.size, there.geo) == (here.size, here.geo)
        assert_array_equal(there.read(850, 650, 1000, 800), here.read(850, 650, 1000, 800))
        assert there.stamp
    assert server.sent < (folder / "a.tif").stat().st_size / 2
    assert all(login is not None and login.startswith("AWS4-HMAC-SHA256") for login in server.logins[-3:])
    refused = {"404": "no such file", "403": "access denied with the credentials that are set; set AWS_ACCESS_KEY_ID"}
    for bucket, said in refused.items():
        with pytest.raises(UserError, match=said):
            open_source(find_items([f"s3://{bucket}/a.tif"])[0][0].image, QUICK, name="x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_source(find_items(["s3://ok/b.tif"])[0][0].image, QUICK, name="x")
    assert not any(word in "".join(capfd.readouterr()) for word in ("AKIDOPEN", "s3cret"))


# S3: a server of another make, and GDAL's own client.


@pytest.fixture(scope="module")
def bucket(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Moto's server with the bucket `bucket`; the environment that leads GDAL there."""
    boto3 = pytest.importorskip(
        "boto3", reason="pip install 'moto[s3]' flask flask-cors runs the tests against an S3 server"
    )
    pytest.importorskip(
        "moto.server", reason="pip install 'moto[s3]' flask flask-cors runs the tests against an S3 server"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        for _ in range(300):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                pytest.fail(log.read_text())
            import time

            time.sleep(0.1)
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "s3cret"}
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **keys)
        client.create_bucket(Bucket="bucket")
        for name in ("a.tif", "small.tif", "t.jpg"):
            client.upload_file(str(folder / name), "bucket", f"in/{name}")
        yield {
            "AWS_S3_ENDPOINT": f"127.0.0.1:{port}", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s3cret", "no_proxy": "*",
        }  # fmt: skip
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.slow
def test_a_real_s3_server(
    bucket: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in bucket.items():
        monkeypatch.setenv(key, value)
    (found,), _ = find_items(["s3://bucket/in/a.tif"])
    assert (found.name, found.output) == ("s3://bucket/in/a.tif", "a")
    with open_source(folder / "a.tif") as here, open_source(found.image, QUICK, name=found.name) as there:
        assert (there.size, there.geo) == (here.size, here.geo)
        assert_array_equal(there.read(850, 650, 1000, 800), here.read(850, 650, 1000, 800))
    _, model = spots_model(monkeypatch, tmp_path)
    summary = predict("s3://bucket/in/a.tif", model=model, out=tmp_path / "found", formats=["geojson"], draw=0)
    assert summary.boxes == len(PLACES)
    for name, said in (("in/none.tif", "no such file"), ("in/t.jpg", "no image of a kind")):
        with pytest.raises(UserError, match=said):
            open_source(find_items([f"s3://bucket/{name}"])[0][0].image, QUICK, name=f"s3://bucket/{name}")
