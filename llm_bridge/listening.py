"""Where the commands listen that answer others: their flags, and what is refused before a model is loaded."""

from __future__ import annotations

import argparse
import ipaddress
import math
import socket


def add_listening_flags(parser: argparse.ArgumentParser, what: str, queue: int) -> None:
    """Add what the page and the server have in common: where they listen, and what they take."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: only this machine can reach it)"
    )
    parser.add_argument("--allowed_host", action="append", default=[], metavar="NAME",
                        help=f"another name under which {what} answers, such as a proxy's; you may repeat this")  # fmt: skip
    parser.add_argument(
        "--max_file_mb", type=float, default=10, help="largest file of a picture, in MB (default: %(default)s)"
    )
    parser.add_argument(
        "--max_megapixels", type=float, default=16, help="largest picture, in megapixels (default: %(default)s)"
    )
    parser.add_argument(
        "--queue", type=int, default=queue, help="questions that may wait at once (default: %(default)s)"
    )


def limits_of(arguments: argparse.Namespace) -> dict[str, int]:
    """What the flags of both allow, by the names of `PageLimits` and `ServerLimits`."""
    return {
        "file_bytes": int(arguments.max_file_mb * 1e6),
        "pixels": int(arguments.max_megapixels * 1e6),
        "queue": arguments.queue,
        "new_tokens": arguments.max_new_tokens,
    }


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listening(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be listened at, and limits that are none, before a model is loaded."""
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise ValueError(f"Got --port {arguments.port}: expected 1 to 65535, or leave it out.")
    for name in ("max_file_mb", "max_megapixels", "seconds", "cache_mb"):
        if not 1e-6 <= getattr(arguments, name, 1) < math.inf:
            raise ValueError(f"Got --{name} {getattr(arguments, name)}: expected a number above 0.")
    if not 0 <= getattr(arguments, "memory_mb", 0) < math.inf:
        raise ValueError(f"Got --memory_mb {arguments.memory_mb}: expected 0 or more.")
    _check_address(arguments.host, arguments.port)


def _check_address(host: str, port: int | None) -> None:
    """Refuse an address that cannot be listened at, before a model is loaded."""
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server((address[0], address[1]), family=family).close()
    except OSError as error:
        raise ValueError(
            f"Cannot listen on {host}{f', port {port}' if port else ''} ({error}): give another --host or --port."
        ) from None
