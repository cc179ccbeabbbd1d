"""Small HTTP servers of this machine, for clients of ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Answer = tuple[int, Any]
"""A status and a body: a text as it is, pieces of text as they come, or anything else as JSON."""


def answering(get: Callable[[BaseHTTPRequestHandler], Answer], post: Callable[[Any], Answer]) -> ThreadingHTTPServer:
    """A server at a free port. get: the answer to a request without a body; post: to the JSON of one with a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(*get(self))

        def do_POST(self) -> None:
            self.reply(*post(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def reply(self, status: int, body: Any) -> None:
            self.send_response(status)
            if isinstance(body, Iterator):  # ends with the connection
                self.end_headers()
                for piece in body:
                    self.wfile.write(piece.encode())
                return
            written = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_header("Content-Length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        def log_message(self, *_: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@contextmanager
def served(http: ThreadingHTTPServer) -> Iterator[None]:
    """Let it answer, in a thread of its own, until the end of the context."""
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
