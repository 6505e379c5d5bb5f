"""A hub on this machine's loopback: what the library asks one for, from files in a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub(ThreadingHTTPServer):
    """Serves owner/name from `folder`/owner/name; `sent` are the files whose bytes it gave away,
    `asked` counts all requests."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.sent, self.asked = folder, list[str](), 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder: Path) -> Iterator[LocalHub]:
    """The hub, while the block runs."""
    with LocalHub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub = self.server
        assert isinstance(hub, LocalHub)
        hub.asked += 1
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        is_listing = words[:2] == ["api", "models"]
        owner, name = words[2:4] if is_listing else words[:2]
        place = hub.folder / owner / name
        if is_listing and place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.is_file())
            listed = [{"rfilename": path.relative_to(place).as_posix()} for path in files]
            told = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": listed, "tags": []}
            body = json.dumps(told | {"private": False, "downloads": 0, "likes": 0}).encode()
            self._send(200, body, {"Content-Type": "application/json"}, with_body=with_body)
        elif words[2:3] == ["resolve"] and place.joinpath(*words[4:]).is_file():
            body = place.joinpath(*words[4:]).read_bytes()
            if with_body:
                hub.sent.append("/".join(words[4:]))
            tag = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(200, body, tag, with_body=with_body)
        else:
            code = "EntryNotFound" if place.is_dir() else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code}, with_body=with_body)

    def _send(self, code: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
