"""A double of the Hugging Face Hub on loopback: the routes that the clients use to publish and load models and data sets.

It keeps repositories in memory, checks tokens, speaks LFS with sizes and hashes checked, and can fail on request. It
shows that requests are right and that faults are survived; quotas, xet and gating are not in it. A data set user/name
is the repository "datasets:user/name".
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER, TOKEN = "tester", "hf_" + "GoodTokenForTheDouble"
DATE = "2026-01-01T00:00:00.000Z"


def as_model(path: str) -> str:
    """The path of a request about a data set as that of one about a model with "datasets:" before its name."""
    path = re.sub(r"^/api/datasets/([^/]+/[^/]+)", r"/api/models/datasets:\1", path)
    return re.sub(r"^/datasets/([^/]+/[^/]+)", r"/datasets:\1", path)


def shown(name: str) -> str:
    """The name of a repository in addresses."""
    return name.replace("datasets:", "datasets/")


def oid(content: bytes) -> str:
    """git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    sha: str
    title: str
    files: dict[str, bytes]
    lfs: set[str]  # names of files that are kept in LFS


@dataclass
class Repo:
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, bytes], lfs: set[str]) -> Commit:
        content = [f"{file} {oid(files[file])}" for file in sorted(files)]
        sha = hashlib.sha1("\n".join([self.name, str(len(self.commits)), *content]).encode()).hexdigest()
        made = Commit(sha, title, files, lfs)
        self.commits[made.sha] = made
        self.branches[branch] = made.sha
        return made

    def at(self, revision: str = "main") -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))

    def history(self) -> list[str]:
        """Titles of all commits, the oldest first."""
        return [commit.title for commit in self.commits.values()]


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches, `times` times.

    kind: an HTTP status, "cut" (closed in the middle: of an upload, or else of the answer), "slow" (0.3 s late), "silent" (no
    answer for a minute) or "race" (somebody else commits a head file to all repositories before).
    """

    pattern: str
    kind: int | str
    times: int = 1


class Hub:
    """The server; `with Hub() as hub:` and `HF_ENDPOINT=hub.url`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is no news
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"  # another host, as with the real one

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Content of all files of a repository."""
        commit = self.repos[name].at(revision)
        assert commit is not None
        return commit.files

    def count(self, pattern: str) -> int:
        """How many requests "METHOD path" matched."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def commit_elsewhere(self) -> None:
        """A commit of somebody else to the main branch of each repository."""
        for repo in self.repos.values():
            files = {**self.files(repo.name), "beyond_binary_head.safetensors": b"theirs"}
            repo.commit("main", "of somebody else", files, repo.commits[repo.branches["main"]].lfs)

    def fault(self, request: str) -> int | str | None:
        """The fault that this request meets, which is then used up."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault.kind
        return None


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message or code


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silent."""

    def any_method(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}
        request = f"{self.command} {urlsplit(self.path).path}"
        fault = self.hub.fault(request)
        self.cut = fault == "cut"
        with self.hub.lock:
            self.hub.requests.append(request)
        if fault == "cut" and self.command == "PUT":
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            return self.hang_up()
        self.data = self.body()
        if fault in ("slow", "silent"):
            time.sleep(0.3 if fault == "slow" else 60)
        if fault == "race":
            self.hub.commit_elsewhere()
        try:
            if isinstance(fault, int):
                raise Refused(fault, message="a fault that was asked for")
            with self.hub.lock:
                self.route(as_model(urlsplit(self.path).path), path)
        except Refused as refused:
            error = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self.answer({"error": refused.message}, refused.status, {k: v for k, v in error.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = any_method

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        if self.cut:
            self.wfile.flush()
            self.hang_up()

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        """A file, or the range of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(content, 200, {**headers, "Accept-Ranges": "bytes"})
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if start >= len(content):
            raise Refused(416)
        told = {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}
        self.answer(content[start : end + 1], 206, told)

    def user(self, needed: bool = True) -> str | None:
        """Who asks; a wrong token is refused everywhere, a missing one where one is needed."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise Refused(401, message="Invalid username or password.")
        if needed and not token:
            raise Refused(401, message="Invalid username or password.")
        return USER if token else None

    def repo(self, name: str, write: bool = False) -> Repo:
        user, repo = self.user(needed=write), self.hub.repos.get(name)
        if repo is None or (repo.private and user is None):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and not name.removeprefix("datasets:").startswith(f"{USER}/"):
            raise Refused(403, message="Forbidden: you have no rights to write to this repository")
        return repo

    def commit_at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def route(self, quoted: str, path: str) -> None:
        for pattern, action in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {quoted}"):
                return action(self, *(unquote(part or "") for part in found.groups()))
        raise Refused(404, message=f"the double has no {self.command} {path}")

    def whoami(self) -> None:
        access = {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}}
        self.answer({"type": "user", "id": "1", "name": self.user(), "fullname": USER, "orgs": [], "auth": access})

    def create(self) -> None:
        self.user()
        asked = json.loads(self.data)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if not name.startswith(f"{USER}/"):
            raise Refused(403, message="Forbidden: you have no rights to create a model under this namespace")
        name = f"datasets:{name}" if asked.get("type") == "dataset" else name
        told = {"url": f"{self.hub.url}/{shown(name)}", "name": shown(name)}
        if name in self.hub.repos:
            return self.answer({**told, "error": "You already created this model repo"}, 409)
        repo = self.hub.repos[name] = Repo(name, asked.get("visibility") == "private" or asked.get("private") is True)
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"}, set())
        self.answer(told)

    def validate_yaml(self) -> None:
        block = re.match(r"---\n(.*?)\n---\n", json.loads(self.data)["content"], re.DOTALL)
        problem = None if block else "no metadata"
        known = yaml.safe_load(block[1]) if block else {}
        if not re.fullmatch(r"[a-z0-9.-]+", known.get("license", "mit")):
            problem = f'"license" must be one of the known ones, not {known["license"]}'
        for entry in known.get("model-index", []):
            for result in entry["results"]:
                if not {"type", "name"} <= result["dataset"].keys() or "type" not in result["task"]:
                    problem = "model-index: dataset needs type and name"
        told = {"errors": [{"message": problem}] if problem else [], "warnings": []}
        self.answer(told, 400 if problem else 200)

    def branch(self, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        if branch in repo.branches:
            raise Refused(409, message="Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self.answer({})

    def preupload(self, name: str, revision: str) -> None:
        commit = self.commit_at(self.repo(name, write=True), revision)
        told = []
        for file in json.loads(self.data)["files"]:
            large = file["path"].endswith((".safetensors", ".png", ".parquet")) or file["size"] > 10_000_000
            now = commit.files.get(file["path"])
            digest = None if now is None else hashlib.sha256(now).hexdigest() if large else oid(now)
            told.append({
                "path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": digest,
            })  # fmt: skip
        self.answer({"files": told})

    def lfs_batch(self, name: str) -> None:
        self.repo(name, write=True)
        told: list[dict[str, Any]] = []
        for file in json.loads(self.data)["objects"]:
            told.append({"oid": file["oid"], "size": file["size"]})
            if file["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.storage}/lfs/{file['oid']}"}
                told[-1]["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/{name}/lfs/verify"}}
        self.answer({"transfer": "basic", "objects": told})

    def lfs_put(self, digest: str) -> None:
        if hashlib.sha256(self.data).hexdigest() != digest:
            raise Refused(400, message="content and oid differ")
        self.hub.objects[digest] = self.data
        self.answer({})

    def lfs_get(self, digest: str) -> None:
        self.send_content(self.hub.objects[digest], {"ETag": f'"{digest}"'})

    def lfs_verify(self, name: str) -> None:
        self.repo(name, write=True)
        asked = json.loads(self.data)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, message="the object was not uploaded")
        self.answer({})

    def commit(self, name: str, revision: str) -> None:
        repo = self.repo(name, write=True)
        parent = self.commit_at(repo, revision)
        files, lfs, title = dict(parent.files), set(parent.lfs), ""
        for line in self.data.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", parent.sha) != parent.sha:
                    raise Refused(412, message="the branch has moved on")
            elif step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
                lfs.add(value["path"])
            elif step["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, message=f"unknown step {step['key']}")
        made = repo.commit(revision, title, files, lfs)
        url = f"{self.hub.url}/{shown(name)}/commit/{made.sha}"
        self.answer({"success": True, "commitUrl": url, "commitOid": made.sha, "hookOutput": ""})

    def info(self, name: str, revision: str) -> None:
        repo = self.repo(name)
        commit = self.commit_at(repo, revision or "main")
        self.answer({
            "_id": "0", "id": name.removeprefix("datasets:"), "modelId": name, "author": USER, "sha": commit.sha, "private": repo.private,
            "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "createdAt": DATE,
            "lastModified": DATE, "siblings": [{"rfilename": file} for file in sorted(commit.files)],
        })  # fmt: skip

    def tree(self, name: str, revision: str, inside: str) -> None:
        commit = self.commit_at(self.repo(name), revision)
        above = f"{inside}/" if inside else ""
        below = [path.removeprefix(above) for path in sorted(commit.files) if path.startswith(above)]
        if not below:
            raise Refused(404, "EntryNotFound", "Entry not found")
        deep = self.query.get("recursive", "").lower() in ("true", "1")
        folders = {"/".join(path.split("/")[:n]) for path in below for n in range(1, path.count("/") + 1)}
        chosen = sorted(above + path for path in {*below, *folders} if deep or "/" not in path)
        self.answer([self.entry(commit, path) for path in chosen])

    def entry(self, commit: Commit, path: str) -> dict[str, Any]:
        if path not in commit.files:
            return {"type": "directory", "path": path, "oid": oid(path.encode()), "size": 0}
        content = commit.files[path]
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
        found = {"type": "file", "path": path, "size": len(content), "oid": oid(content)}
        return {**found, "lfs": lfs} if path in commit.lfs else found

    def paths_info(self, name: str, revision: str) -> None:
        commit, asked = self.commit_at(self.repo(name), revision), parse_qs(self.data.decode()).get("paths", [])
        known = [path for path in asked if any(file == path or file.startswith(f"{path}/") for file in commit.files)]
        self.answer([self.entry(commit, path) for path in known])

    def refs(self, name: str) -> None:
        branches = self.repo(name).branches.items()
        told = [{"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha} for branch, sha in branches]
        self.answer({"branches": told, "converts": [], "tags": []})

    def resolve(self, name: str, revision: str, file: str) -> None:
        commit = self.commit_at(self.repo(name), revision)
        if file not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content, head = commit.files[file], {"X-Repo-Commit": commit.sha}
        if file not in commit.lfs:
            return self.send_content(content, {**head, "ETag": f'"{oid(content)}"'})
        digest = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self.answer(b"", 302, {**head, **linked, "Location": f"{self.hub.storage}/lfs/{digest}"})


NAME, API = r"([^/]+/[^/]+)", r"/api/models/([^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (rf"POST {API}/branch/([^/]+)", Handler.branch),
    (rf"POST {API}/preupload/([^/]+)", Handler.preupload),
    (rf"POST {API}/commit/([^/]+)", Handler.commit),
    (rf"GET {API}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    (rf"POST {API}/paths-info/([^/]+)", Handler.paths_info),
    (rf"GET {API}/refs", Handler.refs),
    (rf"GET {API}(?:/revision/([^/]+))?", Handler.info),
    (r"PUT /lfs/([0-9a-f]{64})", Handler.lfs_put),
    (r"GET /lfs/([0-9a-f]{64})", Handler.lfs_get),
    (rf"POST /{NAME}/lfs/verify", Handler.lfs_verify),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
