"""A Hub on this machine, for the real client to push to and pull from.

It keeps model repositories in memory and speaks as much of the Hub's HTTP as `huggingface_hub` needs for
that: repositories, commits (large files by git-LFS), revisions, branches, tags, file trees and downloads. A
client finds it by `HF_ENDPOINT`, set before `huggingface_hub` is imported, with `HF_HUB_DISABLE_XET=1`. As on
the Hub, only who brings a token may write.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["USER", "LoopbackHub", "Repository"]

USER = "me"
LARGE = (".safetensors", ".bin")  # what the Hub keeps in LFS
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Repository:
    """Commits and what points to them."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # id: {path: content}
    titles: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag: commit

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        oid = hashlib.sha1(f"{self.name} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.titles[oid], self.refs[branch] = files, title, oid
        return oid

    def find(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit id means."""
        return revision if revision in self.commits else self.refs.get(revision.removeprefix("refs/heads/"))

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.find(revision) or ""]


class LoopbackHub:
    """A server of model repositories; runs inside a `with` statement.

    Attributes:
        repositories: By name, such as "me/cats".
        requests: Every request so far, as "GET /api/models/me/cats".
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # sha256: content
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class HubError(Exception):
    """An answer of the Hub that is an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict:
    """A file as the Hub lists it."""
    row = {"type": "file", "path": path, "oid": git_id(content), "size": len(content)}
    if path.endswith(LARGE):
        row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return row


class Handler(BaseHTTPRequestHandler):
    """One request: `ROUTES` names the method that answers it; `(?P<...>)` of the path are its arguments."""

    hub: ClassVar[LoopbackHub]
    protocol_version = "HTTP/1.1"
    repo = r"(?P<name>[^/]+/[^/]+)"
    ROUTES: ClassVar = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("GET", rf"/api/models/{repo}(?:/revision/(?P<revision>.+))?", "info"),
        ("GET", rf"/api/models/{repo}/refs", "list_refs"),
        ("POST", rf"/api/models/{repo}/branch/(?P<ref>.+)", "point"),
        ("POST", rf"/api/models/{repo}/tag/(?P<revision>.+)", "point"),
        ("GET", rf"/api/models/{repo}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
        ("POST", rf"/api/models/{repo}/paths-info/(?P<revision>.+)", "paths_info"),
        ("POST", rf"/api/models/{repo}/preupload/(?P<revision>.+)", "preupload"),
        ("POST", rf"/api/models/{repo}/commit/(?P<revision>.+)", "commit"),
        ("POST", rf"/{repo}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "upload"),
        ("GET", rf"/{repo}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
    ]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        with self.hub.lock:
            try:
                answer, arguments = self._route(unquote(url.path))
                answer(self, **arguments)
            except HubError as error:
                self.reply({"error": error.code}, error.status, **{"X-Error-Code": error.code})

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names that the base class looks for

    def _route(self, path: str) -> tuple[Callable, dict[str, str]]:
        wanted = "GET" if self.command == "HEAD" else self.command
        for command, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if command == wanted and match:
                if command != "GET" and name != "upload" and not self.headers.get("Authorization"):
                    raise HubError(401, "Unauthorized")
                return getattr(type(self), name), {k: v for k, v in match.groupdict().items() if v}
        raise HubError(501, "NotImplemented")

    def log_message(self, *args: object) -> None:
        """Nothing: `requests` has it."""

    def reply(self, body: object, status: int = 200, **headers: str) -> None:
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, name: str) -> Repository:
        if name not in self.hub.repositories:
            raise HubError(404, "RepoNotFound")
        return self.hub.repositories[name]

    def revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit id and files."""
        repository = self.repository(name)
        oid = repository.find(revision)
        if oid is None:
            raise HubError(404, "RevisionNotFound")
        return oid, repository.commits[oid]

    # ---- repositories

    def whoami(self) -> None:
        token = {"accessToken": {"role": "write"}}
        self.reply({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": token})

    def validate_card(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            self.reply(answer | {"error": "exists"}, 409)
            return
        repository = self.hub.repositories[name] = Repository(name)
        repository.commit("main", {".gitattributes": b""}, "initial commit")
        self.reply(answer)

    def delete(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        del self.hub.repositories[self.repository(name).name]
        self.reply({})

    def info(self, name: str, revision: str = "main") -> None:
        oid, files = self.revision(name, revision)
        answer = {"_id": name, "id": name, "modelId": name, "author": name.split("/")[0], "sha": oid}
        answer |= {
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        answer |= {
            "lastModified": DATE,
            "createdAt": DATE,
            "siblings": [{"rfilename": f} for f in sorted(files)],
        }
        self.reply(answer)

    def list_refs(self, name: str) -> None:
        refs = self.repository(name).refs.items()
        rows = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": oid} for ref, oid in refs]
        self.reply({"branches": rows, "tags": [], "converts": []})

    def point(self, name: str, ref: str = "", revision: str = "main") -> None:
        """Make a branch (`ref`) or a tag (its name comes in the body)."""
        asked = json.loads(self.body or b"{}")
        oid, _ = self.revision(name, asked.get("startingPoint") or revision)
        self.repository(name).refs[ref or asked["tag"]] = oid
        self.reply({})

    # ---- what a repository holds

    def tree(self, name: str, revision: str, folder: str = "") -> None:
        _, files = self.revision(name, revision)
        top = f"{folder}/" if folder else ""
        inside = [path for path in sorted(files) if path.startswith(top)]
        if top and not inside:
            raise HubError(404, "EntryNotFound")
        deep = self.query.get("recursive") == ["true"]
        parents = {
            path[:top_length]
            for path in inside
            for top_length in (match.start() for match in re.finditer("/", path))
            if top_length >= len(top)
        }
        rows = [{"type": "directory", "path": path, "oid": "", "size": 0} for path in sorted(parents)]
        rows += [entry(path, files[path]) for path in inside]
        self.reply([row for row in rows if deep or "/" not in row["path"][len(top) :]])

    def paths_info(self, name: str, revision: str) -> None:
        _, files = self.revision(name, revision)
        is_json = self.body.startswith(b"{")
        wanted = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        self.reply([entry(path, files[path]) for path in wanted if path in files])

    def download(self, name: str, revision: str, path: str) -> None:
        oid, files = self.revision(name, revision)
        if path not in files:
            raise HubError(404, "EntryNotFound")
        self.reply(files[path], **{"ETag": f'"{git_id(files[path])}"', "X-Repo-Commit": oid})

    # ---- commits

    def preupload(self, name: str, revision: str) -> None:
        """Which files travel in the commit and which by LFS; with the id of those that are there already."""
        _, files = self.revision(name, revision)
        rows = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            row = {
                "path": path,
                "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            if path in files:
                known = entry(path, files[path])
                row["oid"] = known["lfs"]["oid"] if "lfs" in known else known["oid"]
            rows.append(row)
        self.reply({"files": rows})

    def batch(self, name: str) -> None:
        """Where to put the large files that are not here yet."""
        self.repository(name)
        rows = []
        for asked in json.loads(self.body)["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                row["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"}}
            rows.append(row)
        answer = {"transfer": "basic", "objects": rows}
        self.reply(answer, **{"Content-Type": "application/vnd.git-lfs+json"})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(422, "HashMismatch")
        self.hub.large[oid] = self.body
        self.reply({})

    def commit(self, name: str, revision: str) -> None:
        """Lines of JSON: a header, then files, large files and deletions."""
        _, before = self.revision(name, revision)
        files, title = dict(before), ""
        for line in filter(None, self.body.split(b"\n")):
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                title = value["summary"]
            elif row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:  # deletedFile, deletedFolder
                gone = value["path"].rstrip("/")
                files = {p: c for p, c in files.items() if p != gone and not p.startswith(f"{gone}/")}
        oid = self.repository(name).commit(revision, files, title)
        url = f"{self.hub.endpoint}/{name}/commit/{oid}"
        self.reply({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
