"""A local file makes no request and reads nothing outside its folder, whatever it pretends to be, unless that is allowed."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from spots import geotiff, spots_model, spotted

from flyspeck.errors import UserError
from flyspeck.infer.job import predict
from flyspeck.infer.source import open_source
from flyspeck.infer.windows import OpenOptions

rasterio = pytest.importorskip("rasterio")
PLACE = (0.1, 0, 500000, 0, -0.1, 4000000)
PIXELS = spotted((48, 64), [(4, 20), (40, 20)])


class Listener:
    """A port that counts who calls."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]

    def calls(self) -> int:
        count = 0
        while True:
            try:
                self._socket.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def vrt(source: str, *, relative: int = 1, band: str = "", inside: str = "") -> str:
    return (
        f'<VRTDataset rasterXSize="64" rasterYSize="48"><SRS>EPSG:32633</SRS>{inside}'
        "<GeoTransform>500000, 0.1, 0, 4000000, 0, -0.1</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1"{band}><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def test_a_vrt_of_files_beside_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    geotiff(tmp_path / "tiles" / "a.tif", PIXELS, PLACE, "EPSG:32633")
    (tmp_path / "a.vrt").write_text(vrt("tiles/a.tif"))
    (tmp_path / "outer.vrt").write_text(vrt("a.vrt"))  # a VRT of a VRT
    (tmp_path / "called.tif").write_text('<?xml version="1.0"?>\n<!-- mine -->' + vrt("a.vrt"))
    for name in ("a.vrt", "outer.vrt", "called.tif"):
        with open_source(tmp_path / name) as source:
            assert_array_equal(source.read(0, 0, 64, 48)[:, :, 0], PIXELS)
            assert source.geo is not None
            assert source.geo.crs == "EPSG:32633"


def test_what_gdal_itself_writes_as_vrt_is_read(tmp_path: Path) -> None:
    from rasterio.shutil import copy
    from rasterio.vrt import WarpedVRT

    geotiff(tmp_path / "a.tif", PIXELS, PLACE, "EPSG:32633", nodata=0)
    copy(tmp_path / "a.tif", tmp_path / "copy.vrt", driver="VRT")
    with rasterio.open(tmp_path / "a.tif") as file, WarpedVRT(file, crs="EPSG:3857") as warped:
        copy(warped, tmp_path / "warped.vrt", driver="VRT")
    for name in ("copy.vrt", "warped.vrt"):
        text = (tmp_path / name).read_text()
        text = text.replace('relativeToVRT="0"', 'relativeToVRT="1"').replace(str(tmp_path / "a.tif"), "a.tif")
        (tmp_path / name).write_text(text)
        with open_source(tmp_path / name) as source:
            assert (source.read(0, 0, *source.size[::-1])[:, :, 0] > 200).sum() >= 16


def test_where_a_vrt_has_no_source_nothing_is(tmp_path: Path) -> None:
    geotiff(tmp_path / "a.tif", PIXELS, PLACE, "EPSG:32633")
    source = (
        '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>1</SourceBand>'
        '<SrcRect xOff="0" yOff="0" xSize="64" ySize="48"/><DstRect xOff="{}" yOff="{}" xSize="64" ySize="48"/></SimpleSource>'
    )
    text = vrt("a.tif").replace('"64" rasterYSize="48"', '"128" rasterYSize="96"')
    head, tail = text[: text.index("<SimpleSource>")], text[text.index("</VRTRasterBand>") :]
    (tmp_path / "a.vrt").write_text(head + source.format(0, 0) + source.format(64, 48) + tail)
    with open_source(tmp_path / "a.vrt") as opened:
        assert opened.size == (96, 128)
        for window, there in (((0, 0, 64, 48), True), ((64, 48, 128, 96), True), ((64, 0, 128, 48), False)):
            _, seen = opened.window(*window)
            assert (seen is None) if there else (seen is not None and not seen.any())
        pixels, seen = opened.window(32, 0, 96, 48)
        assert seen is not None
        assert_array_equal(seen[0], np.arange(64) < 32)
        assert pixels.min() >= 60
    # A "no data" value of its own says it better: then that counts.
    (tmp_path / "b.vrt").write_text(
        (head + source.format(0, 0) + tail).replace("<SimpleSource>", "<NoDataValue>7</NoDataValue><SimpleSource>", 1)
    )
    with open_source(tmp_path / "b.vrt") as opened:
        _, seen = opened.window(0, 0, 128, 96)
        assert seen is not None
        assert seen.sum() == 64 * 48


OUTSIDE = [
    ("/vsicurl/http://127.0.0.1:{port}/o.tif", 0),
    ("http://127.0.0.1:{port}/o.tif", 0),
    ("/vsis3/bucket/o.tif", 0),
    ("{folder}/other/a.tif", 0),
    ("../other/a.tif", 1),
    ("..\\other\\a.tif", 1),
    ("/etc/passwd", 0),
    ("GTIFF_DIR:1:{folder}/other/a.tif", 0),
    ("vrt://{folder}/other/a.tif", 0),
    ("&lt;GDAL_WMS&gt;&lt;Service/&gt;&lt;/GDAL_WMS&gt;", 0),
    ("link.tif", 1),
    ("other", 1),
    ("", 1),
]


@pytest.mark.parametrize(("named", "relative"), OUTSIDE)
@pytest.mark.parametrize("name", ["a.vrt", "a.tif", "nested.vrt"])
def test_a_source_outside_the_folder_is_refused_and_named(
    tmp_path: Path, listener: Listener, named: str, relative: int, name: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "in").mkdir()
    geotiff(tmp_path / "other" / "a.tif", PIXELS, PLACE, "EPSG:32633")
    (tmp_path / "in" / "link.tif").symlink_to(tmp_path / "other" / "a.tif")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "other")
    source = named.format(port=listener.port, folder=tmp_path)
    path = tmp_path / "in" / name
    path.write_text(vrt(source, relative=relative))
    if name == "nested.vrt":
        (tmp_path / "in" / "outer.vrt").write_text(vrt("nested.vrt"))
        path = tmp_path / "in" / "outer.vrt"
    with pytest.raises(UserError, match=r"its source '.*' (lies outside its folder|is not there)") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    if "is not there" not in str(caught.value):
        assert "--allow-references" in str(caught.value)
    assert listener.calls() == 0


WRONG = [
    ('<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/http://x/o</MDI></Metadata>', "", "OVERVIEWS"),
    ('<Metadata domain="GEOLOCATION"><MDI key="X_DATASET">/etc/x</MDI></Metadata>', "", "GEOLOCATION"),
    ("<Input><SourceFilename>a.tif</SourceFilename></Input>", "", "<Input>"),
    ("", ' subClass="VRTRawRasterBand"', "VRTRawRasterBand"),
    ("<PixelFunctionLanguage>Python</PixelFunctionLanguage>", "", "Python"),
    ("<PixelFunctionCode>import os</PixelFunctionCode>", "", "PixelFunctionCode"),
]


@pytest.mark.parametrize(("inside", "band", "named"), WRONG)
def test_a_vrt_that_does_more_than_place_pixels_is_refused(tmp_path: Path, inside: str, band: str, named: str) -> None:
    geotiff(tmp_path / "a.tif", PIXELS, PLACE, "EPSG:32633")
    (tmp_path / "a.vrt").write_text(vrt("a.tif", band=band, inside=inside))
    with pytest.raises(UserError, match=rf"{named}.*--allow-references"):
        open_source(tmp_path / "a.vrt")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<SimpleSource>", '<SimpleSource SourceFilename="{outside}">'),
        (">a.tif<", ">{outside}<!-- -->a.tif<"),
        (">a.tif<", "><![CDATA[{outside}]]><"),
        ("SourceFilename", "SOURCEFILENAME"),
        ("<SimpleSource>", '<SimpleSource><SourceFilename relativeToVRT="0">{outside}</SourceFilename>'),
        ('band="1"', 'band="1" PixelFunctionCode="import os"'),
        ("<VRTRasterBand", '<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename>{outside}</SourceFilename>'
         "</SimpleSource></VRTRasterBand></MaskBand><VRTRasterBand"),
    ],
)  # fmt: skip
def test_other_ways_to_write_a_source_are_none(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "in").mkdir()
    geotiff(tmp_path / "secret.tif", PIXELS, PLACE, "EPSG:32633")
    geotiff(tmp_path / "in" / "a.tif", PIXELS, PLACE, "EPSG:32633")
    text = vrt("a.tif").replace(old, new.format(outside=tmp_path / "secret.tif"))
    (tmp_path / "in" / "a.vrt").write_text(text)
    with pytest.raises(UserError):
        open_source(tmp_path / "in" / "a.vrt")


@pytest.mark.parametrize(
    "content",
    [
        '<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW&#95;FILE">{outside}</MDI></Metadata>',
        "<Metadata domain='OVERVIEWS'><MDI key = 'overview_file' >{outside}</MDI></Metadata>",
        '<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE"><![CDATA[{outside}]]></MDI></Metadata>',
        '<PAMRasterBand><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">../s.tif</MDI></Metadata></PAMRasterBand>',
        '<Metadata domain="OVERVIEWS"><MDI key=OVERVIEW_FILE>{outside}</MDI></Metadata>',
    ],
)
def test_other_ways_to_name_overviews_are_none(tmp_path: Path, content: str) -> None:
    geotiff(tmp_path / "a.tif", PIXELS, PLACE, "EPSG:32633")
    text = content.format(outside="/etc/secret.tif")
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{text}</PAMDataset>")
    with pytest.raises(UserError, match=r"'a\.tif\.aux\.xml' beside it"):
        open_source(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "content",
    [
        "<SRS>http://127.0.0.1:{port}/x</SRS><GeoTransform>5,1,0,5,0,-1</GeoTransform>",
        '<GCPList Projection="http://127.0.0.1:{port}/x"><GCP Id="1" Pixel="0" Line="0" X="0" Y="0"/></GCPList>',
        '<Metadata domain="RPC"><MDI key="LINE_OFF">/vsicurl/http://127.0.0.1:{port}/x</MDI></Metadata>',
    ],
)
@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_what_gdal_cannot_make_sense_of_is_one_line(
    tmp_path: Path, listener: Listener, name: str, content: str
) -> None:
    from PIL import Image

    Image.fromarray(PIXELS).save(tmp_path / name)
    (tmp_path / f"{name}.aux.xml").write_text(f"<PAMDataset>{content.format(port=listener.port)}</PAMDataset>")
    with suppress(UserError), open_source(tmp_path / name) as source:  # nothing else is raised
        source.read(0, 0, 64, 48)
    assert listener.calls() == 0


def test_entities_and_rings_of_vrts_end(tmp_path: Path) -> None:
    (tmp_path / "a.vrt").write_text('<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]>' + vrt("&y;"))
    with pytest.raises(UserError):
        open_source(tmp_path / "a.vrt")
    (tmp_path / "b.vrt").write_text(vrt("b.vrt"))
    with pytest.raises(UserError, match="cannot be read"), open_source(tmp_path / "b.vrt") as source:
        source.read(0, 0, 64, 48)
    for number in range(12):
        (tmp_path / f"{number}.vrt").write_text(vrt(f"{number + 1}.vrt"))
    geotiff(tmp_path / "12.vrt", PIXELS, PLACE, "EPSG:32633")
    with pytest.raises(UserError, match="more than 8 deep"):
        open_source(tmp_path / "0.vrt")


@pytest.mark.parametrize("ending", [".ovr", ".msk", ".aux.xml"])
def test_files_beside_a_raster_lead_nowhere(tmp_path: Path, listener: Listener, ending: str) -> None:
    geotiff(tmp_path / "a.tif", PIXELS, PLACE, "EPSG:32633")
    target = f"/vsicurl/http://127.0.0.1:{listener.port}/o.tif"
    text = vrt(target, relative=0)
    if ending == ".aux.xml":
        text = (
            f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{target}</MDI></Metadata></PAMDataset>'
        )
    (tmp_path / f"a.tif{ending}").write_text(text)
    with pytest.raises(UserError, match=rf"'a\.tif{ending}' beside it"):
        open_source(tmp_path / "a.tif")
    assert listener.calls() == 0


def test_overviews_masks_and_statistics_beside_a_raster_are_used(tmp_path: Path) -> None:
    from rasterio.enums import Resampling

    big = np.zeros((512, 512), np.uint8)
    geotiff(tmp_path / "a.tif", big, PLACE, "EPSG:32633", tiled=True)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.build_overviews([4], Resampling.average)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overviews have no place of their own
        with rasterio.open(tmp_path / "a.tif.ovr", "r+") as file:
            file.write(np.full((1, 128, 128), 77, np.uint8))
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><PAMRasterBand band='1'/></PAMDataset>")
    with open_source(tmp_path / "a.tif") as source:
        assert (source.read(0, 0, 512, 512, (128, 128)) == 77).all()


def test_a_text_that_is_no_image_reaches_no_driver(tmp_path: Path, listener: Listener) -> None:
    wms = f"<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:{listener.port}/</ServerUrl></Service></GDAL_WMS>"
    (tmp_path / "a.tif").write_text(wms)
    with pytest.raises(UserError, match=r"a text that begins with <GDAL_WMS>, no image; --allow-references"):
        open_source(tmp_path / "a.tif")
    assert listener.calls() == 0


def test_the_option_lifts_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "in").mkdir()
    geotiff(tmp_path / "other" / "a.tif", PIXELS, PLACE, "EPSG:32633")
    (tmp_path / "in" / "a.vrt").write_text(vrt("../other/a.tif"))
    with open_source(tmp_path / "in" / "a.vrt", OpenOptions(allow_references=True)) as source:
        assert_array_equal(source.read(0, 0, 64, 48)[:, :, 0], PIXELS)
    _, path = spots_model(monkeypatch, tmp_path)
    summary = predict(tmp_path / "in" / "a.vrt", model=path, out=tmp_path / "out", allow_references=True, draw=0)
    assert summary.boxes == 2
    lines: list[str] = []
    with pytest.raises(UserError, match="1 of 1 image could"):
        predict(tmp_path / "in" / "a.vrt", model=path, out=tmp_path / "no", warn=lines.append)
    assert "its source '../other/a.tif' lies outside its folder; --allow-references" in lines[0]
