"""Files at addresses: parts and whole, from servers that behave and from those that do not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_server import LOGIN, OddServer, odd_server

from flyspeck.errors import UserError
from flyspeck.infer.web import WebFile, WebRule
from flyspeck.infer.web_address import check_hop, check_literal, check_peer, masked

QUICK = WebRule(timeout=0.3, retries=2, pause=0.01)
DATA = np.random.default_rng(0).integers(0, 256, 700_001, np.uint8).tobytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OddServer]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "a.bin").write_bytes(DATA)
    (folder / "empty").write_bytes(b"")
    (folder / "ä b.bin").write_bytes(b"umlaut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        with odd_server(folder) as server:
            yield server


@pytest.fixture(autouse=True)
def afresh(server: OddServer) -> None:
    server.log.clear()
    server.logins.clear()
    server.mood.clear()
    server.sent = 0


span = st.tuples(st.integers(0, len(DATA) + 10), st.integers(0, 200_000))


@settings(max_examples=15, deadline=None)
@given(spans=st.lists(span, min_size=1, max_size=6))
def test_any_parts_in_any_order_are_those_of_the_file(server: OddServer, spans: list[tuple[int, int]]) -> None:
    file = WebFile(server.url("ok/a.bin"), QUICK)
    for start, count in spans:
        assert file.read_at(start, count) == DATA[start : start + count]
    file.close()


def test_only_what_is_needed_is_fetched_over_one_connection(server: OddServer) -> None:
    file = WebFile(server.url("ok/a.bin"), QUICK)
    assert (file.size, file.by_parts) == (len(DATA), True)
    assert file.read_at(300_000, 10) == DATA[300_000:300_010]
    assert file.bytes_read == 2 * 65536  # the first chunk, and the one with the part
    assert file.read_at(300_000, 10) == DATA[300_000:300_010]
    assert len(server.log) == 2
    for start in range(0, 700_001, 10_000):  # read on: fetched ahead in larger and larger parts
        file.read_at(start, 10_000)
    assert len(server.log) < 9
    file.close()


@pytest.mark.parametrize("kind", ["ok", "whole", "chunked", "early-once", "early-twice", "busy", "long"])
def test_a_file_comes_whole(server: OddServer, kind: str, tmp_path: Path) -> None:
    if kind == "long":  # the connection ends before what was promised: an error, after the retries
        with pytest.raises(UserError, match=r"ended early: \d+ of \d+ bytes came, 3 times"):
            WebFile(server.url("wholelong/a.bin"), QUICK).download(tmp_path / "a")
        return
    file = WebFile(server.url(f"{kind}/a.bin"), QUICK)
    assert file.by_parts == (kind not in ("whole", "chunked"))
    file.download(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    file.close()


def test_parts_go_on_after_a_stop(server: OddServer) -> None:
    file = WebFile(server.url("early-once/a.bin"), QUICK)
    assert file.read_at(200_000, 300_000) == DATA[200_000:500_000]
    assert len([r for _, r in server.log if r and not r.startswith("bytes=0-")]) == 2
    file.close()


WRONG = {
    "stall": r"no answer for 0.3 s, 3 times; try again later; --resume keeps what is finished",
    "trickle": r"sends less than 2 kB a second, 3 times",
    "early": r"ended early: \d+ of \d+ bytes came, 3 times",
    "elsewhere": "gives another part than the one that was asked for",
    "changing": "the file changed while it was read",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_server_that_fails_is_one_line_in_bounded_time(server: OddServer, kind: str) -> None:
    file = WebFile(server.url(f"{kind}/a.bin"), QUICK)
    start = time.monotonic()
    with pytest.raises(UserError, match=WRONG[kind]):
        file.read_at(200_000, 100)
    assert time.monotonic() - start < 8
    file.close()


REFUSED = {
    "404/a.bin": r"no such file \(404\)",
    "410/a.bin": r"no such file \(410\)",
    "403/a.bin": r"needs credentials \(403\); https://NAME:PASSWORD@host",
    "login/a.bin": r"needs credentials \(401\)",
    "500/a.bin": r"answers 500 \(Internal Server Error\), 3 times",
    "packed/a.bin": "packs the file",
    "ok/empty": "is empty",
}


@pytest.mark.parametrize("path", REFUSED)
def test_a_refusal_is_one_line(server: OddServer, path: str) -> None:
    with pytest.raises(UserError, match=REFUSED[path]) as caught:
        WebFile(server.url(path), QUICK)
    assert caught.value.where == server.url(path)
    assert len(server.log) == (3 if path.startswith("500") else 1)


def test_nobody_there() -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        WebFile("http://127.0.0.1:9/a.tif", WebRule(timeout=0.3, retries=0))


@pytest.mark.parametrize("kind", ["whole", "chunked", "ok"])
def test_a_file_over_the_limit_is_not_fetched(server: OddServer, kind: str, tmp_path: Path) -> None:
    file = WebFile(server.url(f"{kind}/a.bin"), WebRule(timeout=1, most_bytes=200_000))
    with pytest.raises(UserError, match="over the limit of 0 MB for what is fetched whole"):
        file.download(tmp_path / "a")
    assert (not (tmp_path / "a").exists()) or (tmp_path / "a").stat().st_size <= 200_000
    file.close()


def test_a_length_that_is_a_lie(server: OddServer) -> None:
    file = WebFile(server.url("huge/a.bin"), QUICK)
    assert file.size == len(DATA) + 10**15
    with pytest.raises(UserError):
        file.read_at(10**12, 100)
    file.close()


def test_name_and_password_are_sent_and_never_shown(server: OddServer) -> None:
    address = server.url("login/a.bin").replace("://", "://anna:s3cret@") + "?signature=abc#part"
    file = WebFile(address, QUICK)
    assert file.read_at(0, 10) == DATA[:10]
    assert file.name == server.url("login/a.bin")
    assert server.logins == [LOGIN]
    assert server.log[0][0] == "/login/a.bin?signature=abc"
    file.close()
    wrong = address.replace("s3cret", "wr0ng")
    with pytest.raises(UserError, match="with the name and password that were given") as caught:
        WebFile(wrong, QUICK)
    assert not any(word in str(caught.value) for word in ("wr0ng", "anna", "abc"))


def test_letters_of_an_address_are_written_as_the_web_wants_them(server: OddServer) -> None:
    with pytest.raises(UserError):
        WebFile("http:///a", QUICK)
    server.folder.joinpath("ä%20b.bin").write_bytes(b"x")
    file = WebFile(server.url("ok/a.bin").replace("a.bin", "./a.bin"), QUICK)
    assert file.read_at(0, 3) == DATA[:3]
    file.close()
    server.log.clear()
    with pytest.raises(UserError):
        WebFile(server.url("404/ä b.bin"), QUICK)
    assert server.log[0][0] == "/404/" + quote("ä b.bin")


def redirect(server: OddServer, target: str) -> str:
    return server.url(f"redirect/?to={quote(target, safe='')}")


def test_redirects_on_the_host_that_was_named_are_followed(server: OddServer) -> None:
    file = WebFile(redirect(server, "/ok/a.bin"), QUICK)
    assert file.read_at(400_000, 5) == DATA[400_000:400_005]
    assert [path for path, _ in server.log].count("/ok/a.bin") == 2  # the second part is asked where the first one was
    file.close()
    with pytest.raises(UserError, match="redirects more than 5 times"):
        WebFile(server.url("loop/a"), QUICK)


FORBIDDEN = {
    "file:///etc/passwd": r"redirects to file://…; only http and https are followed",
    "ftp://example.org/a": "only http and https are followed",
    "http://169.254.169.254/latest/meta-data": r"link-local|cannot be reached|no answer",
    "http://127.0.0.1:1/a": r"redirects to 127.0.0.1, which is not public|cannot be reached",
}


@pytest.mark.parametrize("target", FORBIDDEN)
def test_redirects_elsewhere_are_not(server: OddServer, target: str) -> None:
    with pytest.raises(UserError, match=FORBIDDEN[target]):
        WebFile(redirect(server, target), WebRule(timeout=0.2, retries=0))


def test_a_redirect_to_another_port_of_this_machine_is_refused_though_it_answers(
    server: OddServer, tmp_path: Path
) -> None:
    (tmp_path / "a.bin").write_bytes(b"inner")
    with odd_server(tmp_path) as inner:
        with pytest.raises(UserError, match=r"redirects to 127\.0\.0\.1, which is not public"):
            WebFile(redirect(server, inner.url("ok/a.bin")).replace("://", "://anna:s3cret@"), QUICK)
        assert inner.log == []
        assert inner.logins == []


PEERS = {
    "93.184.216.34": (True, True),
    "2606:2800:220:1:248:1893:25c8:1946": (True, True),
    "127.0.0.1": (True, False),
    "10.1.2.3": (True, False),
    "192.168.1.1": (True, False),
    "100.64.0.1": (True, False),
    "::1": (True, False),
    "fd00::1": (True, False),
    "::ffff:10.0.0.1": (True, False),
    "169.254.169.254": (False, False),
    "::ffff:169.254.169.254": (False, False),
    "fe80::1%eth0": (False, False),
    "0.0.0.0": (False, False),
    "224.0.0.1": (False, False),
}


@pytest.mark.parametrize("address", PEERS)
def test_which_addresses_are_talked_to(address: str) -> None:
    for own, allowed in zip((True, False), PEERS[address], strict=True):
        for check in (check_peer, check_literal):
            if check is check_literal and "%" in address:
                continue
            if allowed:
                check(address, own=own, name="x")
            else:
                with pytest.raises(UserError):
                    check(address, own=own, name="x")
    check_literal("example.org", own=False, name="x")
    with pytest.raises(UserError):
        check_literal("localhost", own=False, name="x")


def test_https_is_not_left() -> None:
    with pytest.raises(UserError, match="redirects from https to http://host/a"):
        check_hop(urlsplit("https://host/a"), "http://u:p@host/a?q", name="x")
    check_hop(urlsplit("http://host/a"), "https://host/a", name="x")


secret = st.text("abcXYZ019-_.~", min_size=4, max_size=12)


@given(user=secret, password=secret, query=secret, fragment=secret)
def test_no_secret_is_shown(user: str, password: str, query: str, fragment: str) -> None:
    address = f"https://{user}:{password}@host:8443/a/b.tif?token={query}#{fragment}"
    assert masked(address) == "https://host:8443/a/b.tif"
