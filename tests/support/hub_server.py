"""A Hub on loopback: as much of the Hub's API as `huggingface_hub` uses to push models and to load them back.

It keeps repositories as commits of whole trees in memory. It refuses what the real one would: writing without the
right token, reading a private repository without it, objects whose bytes are not their SHA-256, cards whose metadata is
no YAML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".png")  # what the real one keeps as LFS objects by its .gitattributes


@dataclass(frozen=True)
class Commit:
    """One commit: the files after it, and what was said with it."""

    sha: str
    files: dict[str, bytes]
    message: str
    description: str = ""


@dataclass
class Repository:
    """Commits by their hash, and which of them each branch or pull request (`refs/pr/1`) is at."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, files: dict[str, bytes], message: str, description: str = "") -> Commit:
        """Commit `files` as the whole tree at `ref`."""
        sha = hashlib.sha1(repr((ref, len(self.commits), sorted(files), message)).encode()).hexdigest()
        self.commits[sha] = Commit(sha, files, message, description)
        self.refs[ref] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a pull request or a hash."""
        return self.commits.get(self.refs.get(revision, revision))


class Refused(Exception):
    """An answer that is an error: status, code as in `X-Error-Code`, message; `more` is JSON beside the message."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.more = more


class Hub:
    """The state of the server; tests read it."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.endpoint = ""
        self.storage = ""  # another host, as the real one's: clients follow redirects there without their token
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.requests: list[tuple[str, str, bool]] = []  # method, path, whether the token was shown
        self.pull_requests: list[str] = []

    def head(self, name: str, ref: str = "main") -> Commit:
        """Return the latest commit of a repository."""
        return self.repositories[name].commits[self.repositories[name].refs[ref]]

    # Each answer takes (parts of the path, query, body, whether the caller showed the token) and returns JSON.

    def whoami(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        return {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def validate_yaml(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        content = json.loads(body)["content"]
        try:
            data = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else {}
            errors = [] if isinstance(data, dict) else [{"message": "metadata is no mapping"}]
        except yaml.YAMLError as cause:
            errors = [{"message": str(cause)}]
        if errors:
            raise Refused(400, "BadRequest", json.dumps(errors))
        return {"errors": [], "warnings": []}

    def create(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.repositories:
            raise Refused(409, "RepoExists", "You already created this model repo", url=f"{self.endpoint}/{name}")
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self.repositories[name].add("main", {}, "initial commit")
        return {"url": f"{self.endpoint}/{name}", "name": name, "id": name}

    def branch(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        repository, name = self._repository(parts["repo"], known), unquote(parts["rev"])
        if name in repository.refs:
            raise Refused(409, "Conflict", f"Reference already exists: {name}")
        repository.refs[name] = repository.refs["main"]
        return {"ref": f"refs/heads/{name}"}

    def info(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        repository = self._repository(parts["repo"], known)
        commit = self._commit(repository, parts.get("rev") or "main")
        return {
            "_id": "1",
            "id": parts["repo"],
            "modelId": parts["repo"],
            "sha": commit.sha,
            "private": repository.private,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in commit.files],
        }

    def tree(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        commit = self._commit(self._repository(parts["repo"], known), parts["rev"])
        prefix = f"{parts['path']}/" if parts.get("path") else ""
        if prefix and not any(name.startswith(prefix) for name in commit.files):
            raise Refused(404, "EntryNotFound", "Entry not found")
        return [
            {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
            for name, content in commit.files.items()
            if name.startswith(prefix)
        ]

    def preupload(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        files = self._commit(self._repository(parts["repo"], known), unquote(parts["rev"])).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": git_oid(files[file["path"]]) if file["path"] in files else None,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def batch(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        self._repository(parts["repo"], known)
        return {
            "transfer": "basic",
            "objects": [
                one if one["oid"] in self.objects else one | {"actions": {"upload": {"href": self._object(one["oid"])}}}
                for one in json.loads(body)["objects"]
            ],
        }

    def upload(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        if hashlib.sha256(body).hexdigest() != parts["oid"]:
            raise Refused(400, "BadRequest", "the bytes are not those of the object")
        self.objects[parts["oid"]] = body
        return {}

    def commit(self, parts: Any, query: Any, body: bytes, known: bool) -> Any:
        repository, revision = self._repository(parts["repo"], known), unquote(parts["rev"])
        files = dict(self._commit(repository, revision).files)
        header: dict[str, str] = {}
        for line in body.decode().splitlines():
            key, value = (operation := json.loads(line))["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, "BadRequest", f"no such operation: {key}")
        ref, answer = revision, {}
        if query.get("create_pr") == ["1"]:
            self.pull_requests.append(parts["repo"])
            ref = f"refs/pr/{len(self.pull_requests)}"
            answer = {"pullRequestUrl": f"{self.endpoint}/{parts['repo']}/discussions/{len(self.pull_requests)}"}
        commit = repository.add(ref, files, header["summary"], header.get("description", ""))
        return answer | {"commitOid": commit.sha, "commitUrl": f"{self.endpoint}/{parts['repo']}/commit/{commit.sha}"}

    def file(self, parts: Any, known: bool) -> tuple[dict[str, str], bytes]:
        """Return headers and bytes of a file; a large one is elsewhere, where `Location` says."""
        commit = self._commit(self._repository(parts["repo"], known), unquote(parts["rev"]))
        name = unquote(parts["path"])
        if name not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content, headers = commit.files[name], {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if not name.endswith(LARGE):
            return headers | {"ETag": f'"{git_oid(content)}"'}, content
        oid = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)), "Location": self._object(oid)}
        return headers | linked, b""

    def _object(self, oid: str) -> str:
        return f"{self.storage}/objects/{oid}"

    def _repository(self, name: str, known: bool) -> Repository:
        repository = self.repositories.get(name)
        if repository is None or (repository.private and not known):
            raise Refused(404 if known else 401, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


def git_oid(content: bytes) -> str:
    """Return the hash under which git keeps a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPO = r"(?P<repo>[^/]+/[^/]+)"
REV = r"(?P<rev>[^/]+|refs/pr/\d+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", r"/api/whoami-v2", Hub.whoami),
    ("POST", r"/api/validate-yaml", Hub.validate_yaml),
    ("POST", r"/api/repos/create", Hub.create),
    ("GET", rf"/api/models/{REPO}", Hub.info),
    ("GET", rf"/api/models/{REPO}/revision/{REV}", Hub.info),
    ("GET", rf"/api/models/{REPO}/tree/{REV}(?:/(?P<path>.+))?", Hub.tree),
    ("POST", rf"/api/models/{REPO}/branch/{REV}", Hub.branch),
    ("POST", rf"/api/models/{REPO}/preupload/{REV}", Hub.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Hub.batch),
    ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})", Hub.upload),
    ("POST", rf"/api/models/{REPO}/commit/{REV}", Hub.commit),
]
FILE = re.compile(rf"/{REPO}/resolve/{REV}/(?P<path>.+)")
OBJECT = re.compile(r"/objects/(?P<oid>[0-9a-f]{64})")
OPEN = (Hub.validate_yaml, Hub.upload)  # the real one's storage takes signed URLs, not tokens


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers for `hub`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            url = urlsplit(self.path)
            body = self.body()
            known = self.headers.get("Authorization") == f"Bearer {hub.token}"
            hub.requests.append((self.command, url.path, known))
            try:
                if self.command in ("GET", "HEAD") and (match := OBJECT.fullmatch(url.path)):
                    self.send(200, hub.objects[match["oid"]], {"ETag": f'"{match["oid"]}"'})
                elif self.command in ("GET", "HEAD") and (match := FILE.fullmatch(url.path)):
                    headers, content = hub.file(match.groupdict(), known)
                    self.send(302 if "Location" in headers else 200, content, headers)
                else:
                    self.json(url.path, parse_qs(url.query), body, known)
            except Refused as refused:
                content = json.dumps({"error": str(refused)} | refused.more).encode()
                self.send(refused.status, content, {"X-Error-Code": refused.code})

        def json(self, path: str, query: dict[str, list[str]], body: bytes, known: bool) -> None:
            for method, pattern, reply in ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    if method != "GET" and not known and reply not in OPEN:
                        raise Refused(401, "Unauthorized", "Invalid username or password.")
                    content = json.dumps(reply(hub, match.groupdict(), query, body, known)).encode()
                    return self.send(200, content, {"Content-Type": "application/json"})
            raise Refused(404, "NoRoute", f"the loopback Hub has no {self.command} {path}")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def loopback_hub(token: str) -> Iterator[Hub]:
    """Run a Hub on a free port of loopback; `hub.endpoint` is what `HF_ENDPOINT` must say."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.endpoint, hub.storage = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(hub: Hub, home: Path, *command: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with `command` as its arguments where `hub` is the Hub and `home` holds cache and token.

    `HF_ENDPOINT` is read when `huggingface_hub` is imported, hence a process of its own. Xet is another protocol.
    """
    variables = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    variables |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "200"}
    variables |= {"no_proxy": "127.0.0.1,localhost", "HF_TOKEN": hub.token if token is None else token}
    return subprocess.run(
        [sys.executable, *command], env=variables, capture_output=True, text=True, timeout=900, check=False
    )
