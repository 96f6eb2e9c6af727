"""Addresses of files: which are asked, and what of them is shown.

Only the address that the user named is asked for, and what it redirects to: http and https alone, never from https to http. A
redirect to another host must lead to a public address: loopback and private ones are of the user's own network, and no business
of a server elsewhere. Name and password are sent to the host that they were given for. Link-local addresses, where clouds keep
their metadata, are never asked, even if named. What counts is the address that was connected to, not what a name promised.

No message, name or log holds a name, password, query or fragment of an address (`masked`).
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from flyspeck.errors import UserError


def masked(url: str) -> str:
    """The address without name, password, query and fragment: what may be shown."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition(':')[0]}://…"
    return f"{parts.scheme}://{host_and_port(parts)}{parts.path}"


def host_and_port(parts: SplitResult) -> str:
    """As written, without name and password."""
    return parts.netloc.rpartition("@")[2]


def origin_of(parts: SplitResult) -> tuple[str, str, int]:
    """(scheme, host, port): whose name and password, and whose own network, an address is of."""
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def split_address(url: str, *, name: str) -> SplitResult:
    """The parts of an http or https address; `name` is what errors call it. Raises UserError."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UserError("no address", where=name, fix="write https://host/file.tif") from None
    if parts.scheme not in ("http", "https"):
        raise UserError(f"redirects to {parts.scheme}://…", where=name, fix="only http and https are followed")
    if not parts.hostname or re.search(r"[\x00-\x20\x7f]", parts.netloc):
        raise UserError("an address without a host", where=name, fix="write https://host/file.tif")
    return parts


def check_hop(before: SplitResult, target: str, *, name: str) -> None:
    """Raises UserError for a redirect that is not followed."""
    after = split_address(target, name=name)
    if after.scheme == "http" and before.scheme == "https":
        raise UserError(
            f"redirects from https to {masked(target)}", where=name, fix="only https is followed from there"
        )


def check_peer(address: str, *, own: bool, name: str) -> None:
    """Raises UserError for an IP address that is not talked to; `own`: of the host that the user named."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        raise UserError(f"leads to {ip}, where no files are (link-local)", where=name, fix="name a server")
    if not own and not ip.is_global:
        raise UserError(f"redirects to {ip}, which is not public", where=name, fix="name that address, if you mean it")


def check_literal(host: str, *, own: bool, name: str) -> None:
    """The same for a host as it is written, behind a proxy, which resolves names itself."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host.lower() != "localhost":
            return
        host = "127.0.0.1"
    check_peer(host, own=own, name=name)


def proxy_for(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for an address."""
    address = getproxies().get(parts.scheme)
    if not address or proxy_bypass(parts.hostname or ""):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")
