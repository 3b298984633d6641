"""The least of a hub that the library needs, on this machine: repositories of small files."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        content = b"".join(name.encode() + data for name, data in sorted(self.files.items()))
        return hashlib.sha1(content).hexdigest()


@dataclass
class FakeHub:
    """What the server knows, and every request that it got as ``METHOD path``."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    token: str | None = None
    may_write: bool = True
    broken: int | None = None
    endpoint: str = ""

    def asked(self, method: str, part: str) -> list[str]:
        return [line for line in self.requests if line.startswith(method) and part in line]


@contextmanager
def serve():
    """A running :class:`FakeHub`."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.broken:
            return self._send(self.hub.broken, b"{}")
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.hub.token is not None and sent != self.hub.token:
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.startswith("/api/models/"):
            return self._model(path.removeprefix("/api/models/"), body)
        if "/resolve/" in path:
            return self._file(*path.removeprefix("/").split("/resolve/"))
        return self._send(404, b"{}")

    def _create(self, asked):
        if not self.hub.may_write:
            return self._json({"error": "You don't have the rights."}, 403)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        status = 409 if name in self.hub.repositories else 200
        if status == 200:
            repository = Repository(private=asked.get("visibility") == "private")
            repository.files[".gitattributes"] = b""
            self.hub.repositories[name] = repository
        return self._json({"url": f"{self.hub.endpoint}/{name}"}, status)

    def _model(self, rest, body):
        parts = rest.split("/")
        found = next((n for n in ("/".join(parts[:2]), parts[0]) if n in self.hub.repositories), "")
        if not found:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        repository = self.hub.repositories[found]
        action, _, argument = rest.removeprefix(found).strip("/").partition("/")
        if action == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            return self._json({"files": modes})
        if action == "commit":
            return self._commit(found, body)
        if argument not in ("", "main", "v1", repository.sha):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if action == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in repository.files.items()
            ]
            return self._json(listed)
        siblings = [{"rfilename": n, "size": len(d)} for n, d in repository.files.items()]
        about = {"id": found, "sha": repository.sha, "private": repository.private}
        return self._json(about | {"siblings": siblings})

    def _commit(self, name, body):
        repository = self.hub.repositories[name]
        if not self.hub.may_write:
            return self._json({"error": "You don't have the rights."}, 403)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                repository.messages.append(value["summary"])
            elif item["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "deletedFile":
                del repository.files[value["path"]]
        url = f"{self.hub.endpoint}/{name}/commit/{repository.sha}"
        return self._json({"commitUrl": url, "commitOid": repository.sha})

    def _file(self, name, rest):
        repository = self.hub.repositories[name]
        if repository.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        data = repository.files[rest.partition("/")[2]]
        return self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": repository.sha})

    def _json(self, value, status=200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, data, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def weights(size: int) -> bytes:
    """A whole safetensors file of ``size`` bytes, 100 or more, with one tensor of zeros."""
    count = size - 8
    while True:
        entry = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
        header = json.dumps({"a": entry}).encode()
        if 8 + len(header) + count == size:
            return len(header).to_bytes(8, "little") + header + bytes(count)
        count -= 1
