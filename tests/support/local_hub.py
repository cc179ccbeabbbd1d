"""A Hub on this machine, for tests of loading and uploading: it speaks the file protocol of huggingface_hub."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse


class HubServer:
    """Serves folders as repositories, owner/name/…, and takes uploads, over the paths that huggingface_hub asks for."""

    def __init__(self, root: Path) -> None:
        hub = self
        self.root, self.requests = root, []  # type: ignore[var-annotated]

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def do_POST(self) -> None:
                size = self.headers.get("Content-Length")
                body = self.rfile.read(int(size)) if size else b"".join(self.chunks())
                path = unquote(urlparse(self.path).path).strip("/")
                hub.requests.append((self.command, path))
                answer = hub.take(path.split("/"), body)
                self.reply(200 if answer is not None else 404, json.dumps(answer or {}).encode(), with_body=True)

            def chunks(self) -> Iterator[bytes]:
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()

            def log_message(self, *_: object) -> None:
                pass

            def answer(self, with_body: bool) -> None:
                path = unquote(urlparse(self.path).path).strip("/")
                hub.requests.append((self.command, path))
                parts = path.split("/")
                if parts[:2] == ["api", "models"]:
                    self.api(parts[2:], with_body)
                elif len(parts) > 4 and parts[2] == "resolve":
                    self.file(parts, with_body)
                else:
                    self.reply(404, b"", with_body)

            def api(self, parts: list[str], with_body: bool) -> None:
                folder = hub.root / "/".join(parts[:2])
                if not folder.is_dir():
                    return self.reply(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
                files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
                if "tree" in parts:
                    under = "/".join(parts[4:])
                    tree = [
                        {"type": "file", "oid": "0" * 40, "size": p.stat().st_size, "path": str(p.relative_to(folder))}
                        for p in files
                        if p.is_relative_to(folder / under)
                    ]
                    if not tree:
                        return self.reply(404, b"{}", with_body, {"X-Error-Code": "EntryNotFound"})
                    return self.reply(200, json.dumps(tree).encode(), with_body)
                siblings = [{"rfilename": str(p.relative_to(folder))} for p in files]
                info = {"id": "/".join(parts[:2]), "sha": "a" * 40, "siblings": siblings, "private": False, "tags": []}
                return self.reply(200, json.dumps(info).encode(), with_body)

            def file(self, parts: list[str], with_body: bool) -> None:
                file = hub.root / parts[0] / parts[1] / "/".join(parts[4:])
                if not file.is_file():
                    known = (hub.root / parts[0] / parts[1]).is_dir()
                    code = "EntryNotFound" if known else "RepoNotFound"
                    return self.reply(404, b"", with_body, {"X-Error-Code": code, "X-Repo-Commit": "a" * 40})
                content = file.read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                return self.reply(200, content, with_body, {"ETag": f'"{etag}"', "X-Repo-Commit": "a" * 40})

            def reply(self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, parts: list[str], body: bytes) -> dict[str, Any] | None:
        """Create a repository, say how files are to be sent (within the commit), and write those of a commit."""
        if parts == ["api", "validate-yaml"]:
            return {"errors": [], "warnings": []}
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            (self.root / name).mkdir(parents=True, exist_ok=True)
            return {"url": f"{self.address}/{name}"}
        repository = self.root / "/".join(parts[2:4])
        if parts[4:5] == ["preupload"]:
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                              for f in json.loads(body)["files"]]}  # fmt: skip
        if parts[4:5] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    file = repository / line["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
            return {"commitUrl": f"{self.address}/{'/'.join(parts[2:4])}/commit/{'b' * 40}", "commitOid": "b" * 40}
        return None


def run_with_hub(code: str, hub: HubServer, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a fresh process whose Hub is ours: the address is read when huggingface_hub is imported."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
