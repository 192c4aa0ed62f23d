"""A Hub on the loopback interface: enough of its HTTP interface for the real huggingface_hub client."""

import base64
import hashlib
import json
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


class HubServer:
    """
    Serves `root/<owner>/<name>/<commit>/<files>`; `main` is the commit that was added last.

    Attributes:
        requests (`list[str]`): What clients asked for, e.g. `"GET /api/models/owner/name/revision/main"`.
        sent (`Counter[str]`): Bytes of files that were sent, by path, e.g. `"/owner/name/resolve/main/config.json"`.
    """

    def __init__(self, root: Path, port: int):
        self.root = root
        self.commits: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.sent: Counter[str] = Counter()
        self.private: dict[str, bool] = {}
        self.authorizations: set[str | None] = set()  # of what changes something
        self.read_only = False  # what the token may do
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        Thread(target=self.http.serve_forever, daemon=True).start()

    def add_commit(self, repo_id: str, files: dict[str, bytes]) -> str:
        """A commit that adds files to those of the last one; returns its hash."""
        history = self.commits.setdefault(repo_id, [])
        files = {**(self.files(repo_id, history[-1]) if history else {}), **files}
        listing = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        commit = hashlib.sha1(f"{len(history)}{listing}".encode()).hexdigest()
        for name, data in files.items():
            path = self.root / repo_id / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        history.append(commit)
        return commit

    def add_folder(self, repo_id: str, folder: Path) -> str:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return self.add_commit(repo_id, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    def files(self, repo_id: str, commit: str) -> dict[str, bytes]:
        folder = self.root / repo_id / commit
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def resolve(self, repo_id: str, revision: str) -> str | None:
        history = self.commits.get(repo_id, [])
        if revision == "main" and history:
            return history[-1]
        return revision if revision in history else None

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    # a kept-alive connection would outlive its server and answer for the next one
    protocol_version = "HTTP/1.0"
    server_hub: HubServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        hub = self.server_hub
        hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo_id = "/".join(parts[2:4])
            if parts[4:] == ["auth-check", "write"]:
                return self._reply(403 if hub.read_only else 200, b"{}", {})
            revision = parts[5] if len(parts) > 5 else "main"
            commit = hub.resolve(repo_id, revision)
            if commit is None and len(parts) == 4 and repo_id in hub.commits:  # a repo without a commit yet
                return self._json(
                    {"id": repo_id, "siblings": [], "private": hub.private.get(repo_id, False), "tags": []}
                )
            if commit is None:
                return self._missing(repo_id)
            files = hub.files(repo_id, commit)
            if len(parts) > 4 and parts[4] == "tree":
                return self._json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in files.items()
                    ]
                )
            siblings = [{"rfilename": name} for name in files]
            return self._json(
                {
                    "id": repo_id,
                    "sha": commit,
                    "siblings": siblings,
                    "private": hub.private.get(repo_id, False),
                    "tags": [],
                }
            )
        if len(parts) > 4 and parts[2] == "resolve":
            repo_id, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            commit = hub.resolve(repo_id, revision)
            if commit is None:
                return self._missing(repo_id)
            data = hub.files(repo_id, commit).get(name)
            if data is None:
                return self._reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            return self._reply(200, data, headers)
        return self._reply(404, b"", {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        hub = self.server_hub
        hub.requests.append(f"POST {path}")
        hub.authorizations.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            name = json.loads(body)["name"]
            owner = json.loads(body).get("organization") or "someone"
            if f"{owner}/{name}" not in hub.commits:
                hub.commits[f"{owner}/{name}"] = []
                hub.private[f"{owner}/{name}"] = json.loads(body).get("visibility") == "private"
            return self._json({"url": f"http://{self.headers['Host']}/{owner}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repo_id = "/".join(parts[2:4])
        if parts[4] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._json(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        if parts[4] == "commit":
            lines = [json.loads(line) for line in body.decode().splitlines() if line]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = hub.add_commit(repo_id, files)
            url = f"http://{self.headers['Host']}/{repo_id}/commit/{commit}"
            return self._json({"success": True, "commitOid": commit, "commitUrl": url})
        return self._reply(404, b"", {})

    def _json(self, value):
        self._reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, repo_id):
        known = repo_id in self.server_hub.commits
        self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def _reply(self, status, data, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            if "/resolve/" in self.path:
                self.server_hub.sent[unquote(urlsplit(self.path).path)] += len(data)
