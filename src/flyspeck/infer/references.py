"""A local file is read from its own folder: nothing in it, and nothing beside it, leads to other places or other computers.

A VRT is text that names other files, and may name web addresses and programs instead; files beside a raster (`.ovr`, `.msk`,
`.aux.xml`) can do the same, since GDAL opens them with any driver. So all of them are looked at before GDAL is asked: a VRT may
hold the elements that place pixels of image files and nothing else; every file that it names must lie beside it or further in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from flyspeck.errors import UserError
from flyspeck.infer.kinds import driver_of, root_of

LOCAL_ONLY = {"CPL_VSIL_CURL_ALLOWED_FILENAME": "none", "GDAL_VRT_ENABLE_PYTHON": "NO"}
"""GDAL's settings under which nothing that was overlooked here gets through either."""
_FIX = "--allow-references reads whatever a file refers to, if you trust it"
_DEPTH = 8  # of VRTs in VRTs
_FILES = {"SourceFilename", "SourceDataset"}
_PLACING = """
VRTDataset VRTRasterBand SRS GeoTransform GCPList GCP Metadata MDI Description UnitType Offset Scale ColorInterp
NoDataValue HideNoDataValue ColorTable Entry CategoryNames Category Histograms HistItem HistMin HistMax BucketCount
IncludeOutOfRange Approximate HistCounts MaskBand Overview OverviewList SourceBand SourceProperties SrcRect DstRect SimpleSource
ComplexSource AveragedSource KernelFilteredSource NoDataFromMaskSource Kernel Size Coefs NODATA UseMaskBand ScaleOffset
ScaleRatio Exponent SrcMin SrcMax DstMin DstMax Clamp ColorTableComponent LUT MaskValueThreshold RemappedValue
PixelFunctionType PixelFunctionLanguage PixelFunctionArguments SourceTransferType BlockXSize BlockYSize
GDALWarpOptions WarpMemoryLimit ResampleAlg WorkingDataType Option Transformer ApproxTransformer MaxError BaseTransformer
GenImgProjTransformer SrcGeoTransform SrcInvGeoTransform DstGeoTransform DstInvGeoTransform SrcGCPTransformer GCPTransformer
Order Reversed SrcTPSTransformer TPSTransformer NumThreads ReprojectTransformer ReprojectionTransformer SourceSRS TargetSRS
Options BandList BandMapping SrcNoDataReal SrcNoDataImag DstNoDataReal DstNoDataImag Cutline CutlineBlendDist SrcAlphaBand
DstAlphaBand SourceCS TargetCS
"""
_ELEMENTS = _FILES | set(_PLACING.split())
_SAID = """
rasterXSize rasterYSize subClass dataType band blockXSize blockYSize relativeToVRT shared name key xOff yOff xSize ySize
resampling src dst Id Pixel Line X Y Z Info Projection dataAxisToSRSAxisMapping coordinateEpoch c1 c2 c3 c4 domain format
RasterXSize RasterYSize DataType BlockXSize BlockYSize normalized
"""
_ATTRIBUTES = set(_SAID.split())
_CLASSES = {None, "VRTSourcedRasterBand", "VRTWarpedDataset", "VRTWarpedRasterBand", "VRTDerivedRasterBand"}
_SYSTEMS = {"SRS", "SourceSRS", "TargetSRS", "SourceCS", "TargetCS"}
_SYSTEM = re.compile(r"\s*($|[A-Z_0-9]+\s*\[|[A-Za-z]+:\d+\s*$|\+proj=[^/\\]*$|urn:ogc:def:crs:[\w:.]+\s*$)")


def check_references(path: Path, driver: str) -> None:
    """Raises UserError where a file, or what lies beside it for GDAL to read, leads out of its folder."""
    _check(path, driver, {path.resolve().parent, path.parent.resolve()}, depth=0, seen=set())


def covered(path: Path) -> np.ndarray | None:
    """Where a VRT has sources at all: rectangles `(N, 4)` x1, y1, x2, y2 in whole pixels, that hold what its first band is put
    together of; None for a VRT that is computed otherwise. Raises UserError.

    GDAL gives 0 for the rest, as if it were an image there.
    """
    root = _parsed(path)
    band = root.find("VRTRasterBand")
    if root.get("subClass") is not None or band is None or band.get("subClass") not in (None, "VRTSourcedRasterBand"):
        return None
    rectangles = []
    for source in band:
        if source.find("SourceFilename") is None:
            continue
        placed = source.find("DstRect")
        if placed is None:
            return None  # it fills the whole
        x, y, w, h = (float(placed.get(key, "nan")) for key in ("xOff", "yOff", "xSize", "ySize"))
        if not np.isfinite([x, y, w, h]).all():
            return None
        rectangles.append(
            [math.floor(x + 1e-6), math.floor(y + 1e-6), math.ceil(x + w - 1e-6), math.ceil(y + h - 1e-6)]
        )
    return np.array(rectangles, np.int64).reshape(-1, 4)


def _check(path: Path, driver: str, roots: set[Path], *, depth: int, seen: set[Path]) -> None:
    seen.add(path.resolve())
    for beside in _beside(path):
        _check_beside(beside, path)
    if driver != "VRT":
        return
    if depth >= _DEPTH:
        raise UserError(f"VRTs in VRTs, more than {_DEPTH} deep", where=path, fix="write it as one file")
    for source in _sources(path):
        target = _inside(source, path, roots)
        if target.resolve() in seen:
            continue
        kind = driver_of(target)
        if not kind:
            raise UserError(
                f"its source '{source.text}' is no image of a known kind",
                where=path,
                fix=f"convert it to TIFF, or {_FIX}",
            )
        _check(target, kind, roots, depth=depth + 1, seen=seen)


def _beside(path: Path) -> Iterator[Path]:
    """Files that GDAL reads along with `path`: overviews and masks of it (and theirs), and its metadata."""
    for ending in (".aux.xml", ".ovr", ".msk", ".ovr.aux.xml", ".msk.aux.xml", ".msk.ovr", ".ovr.ovr", ".ovr.msk"):
        for name in {path.name + ending, path.name + ending.upper(), path.stem + ending}:
            beside = path.with_name(name)
            if beside.is_file():
                yield beside


def _check_beside(beside: Path, path: Path) -> None:
    if beside.resolve().parent not in {path.resolve().parent, path.parent.resolve()}:
        raise UserError(f"'{beside.name}' beside it leads out of its folder", where=path, fix=_FIX)
    with beside.open("rb") as file:
        start = file.read(2048)
    if not beside.name.lower().endswith(".xml"):
        if driver_of(beside) != "GTiff":
            what = root_of(start)
            raise UserError(
                f"'{beside.name}' beside it is {f'a text that begins with <{what}>' if what else 'no TIFF'}",
                where=path,
                fix=f"take it away, or {_FIX}",
            )
        return
    try:
        elements = list(_xml(beside.read_bytes()).iter())
    except ElementTree.ParseError as error:
        raise UserError(
            f"'{beside.name}' beside it is no XML ({error})", where=path, fix=f"take it away, or {_FIX}"
        ) from None
    for element in elements:
        if any(value.strip().upper() == "OVERVIEW_FILE" for value in element.attrib.values()):
            named = (element.text or "").strip()
            if len(element) or not _plain(named.removeprefix(":::BASE:::")):
                raise UserError(f"'{beside.name}' beside it refers to '{named}'", where=path, fix=_FIX)


def _plain(name: str) -> bool:
    """Whether a text names a file that lies here, and nothing else."""
    return bool(name) and not re.search(r"[/\\:<>?&|]", name) and name not in (".", "..")


def _sources(path: Path) -> list[ElementTree.Element]:
    """The elements of a VRT that name files, each once; raises UserError for a VRT that does more than place pixels of files."""
    root = _parsed(path)
    found: dict[tuple[str, str], ElementTree.Element] = {}
    for element in _elements(root):
        _check_element(element, path)
        if element.tag in _FILES:
            found.setdefault((element.text or "", element.get("relativeToVRT", "0")), element)
    return list(found.values())


def _parsed(path: Path) -> ElementTree.Element:
    try:
        return _xml(path.read_bytes())
    except ElementTree.ParseError as error:
        raise UserError(f"not a VRT that can be read ({error})", where=path, fix="write it again") from None


def _xml(content: bytes) -> ElementTree.Element:
    """Parsed strictly, comments kept, since GDAL takes a text before one for all of it. Raises ParseError for what is no XML, and
    for what its own parser may understand otherwise.
    """
    for mark in (b"<!DOCTYPE", b"<!ENTITY", b"<![CDATA["):
        if mark in content:
            raise ElementTree.ParseError(f"it holds {mark.decode()}")
    builder = ElementTree.TreeBuilder(insert_comments=True, insert_pis=True)
    return ElementTree.fromstring(content.removeprefix(b"\xef\xbb\xbf"), ElementTree.XMLParser(target=builder))


def _elements(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """All elements but what stands in metadata, which GDAL hands on as it is."""
    yield root
    for child in root:
        if not isinstance(child.tag, str):  # a comment
            continue
        if child.tag == "Metadata":
            if str(child.get("domain", "")).upper() in ("OVERVIEWS", "GEOLOCATION", "XML:VRT", "RPC"):
                yield ElementTree.Element(f"Metadata domain={child.get('domain')}")
            continue
        yield from _elements(child)


def _check_element(element: ElementTree.Element, path: Path) -> None:
    wrong = ""
    strange = [name for name in element.attrib if name not in _ATTRIBUTES]
    if element.tag not in _ELEMENTS:
        wrong = f"<{element.tag}>"
    elif strange:  # to GDAL an attribute is an element
        wrong = f"{strange[0]}="
    elif element.tag in _FILES and len(element):
        wrong = f"something in <{element.tag}>"
    elif element.get("subClass") not in _CLASSES:
        wrong = str(element.get("subClass"))
    elif element.tag == "PixelFunctionLanguage" and (element.text or "").strip() not in ("", "C"):
        wrong = f"a pixel function in {(element.text or '').strip()}"
    elif element.tag in _SYSTEMS and not _SYSTEM.match(element.text or ""):
        wrong = f"the coordinate system '{(element.text or '').strip()[:60]}'"
    elif element.tag not in _FILES and re.search(r"/vsi|://(?!www\.opengis)", (element.text or "")[:10_000]):
        wrong = f"'{(element.text or '').strip()[:80]}'"
    if wrong:
        raise UserError(f"a VRT with {wrong}, which is not read as such", where=path, fix=_FIX)


def _inside(source: ElementTree.Element, path: Path, roots: set[Path]) -> Path:
    """The file that a VRT's element names; raises UserError unless it lies beside the VRT or further in."""
    name = source.text or ""
    parts = re.split(r"[/\\]", name)
    outside = not name or bool(re.search(r"[:<>?&|]", name)) or name[0] in "/\\" or ".." in parts
    if not outside:
        target = path.parent / name if source.get("relativeToVRT") == "1" else Path(name)
        outside = not any(target.resolve().is_relative_to(root) for root in roots)
        if not outside and target.is_file():
            return target
    if outside:
        raise UserError(f"its source '{name.strip()[:200]}' lies outside its folder", where=path, fix=_FIX)
    raise UserError(f"its source '{name}' is not there", where=path, fix="put it beside the VRT")
