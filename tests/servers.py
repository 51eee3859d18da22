"""Local HTTP servers for tests: one of files that can misbehave, and one that answers as the Hub does."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]):
    """Runs a server in a thread; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def file_handler(files: dict[str, bytes], drop_after: list[int] | None = None, requests: list | None = None):
    """Serves `files` by name, with Range; the first answers break off after as many bytes as `drop_after` says."""
    drops, log = drop_after or [], [] if requests is None else requests

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path.lstrip("/"))
            log.append((self.path, self.headers.get("Range")))
            if content is None:
                return self.send_error(404)
            start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
            if start and start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[start:][: drops.pop(0)] if drops else content[start:])
            self.close_connection = True

        def log_message(self, *args):
            pass

    return Handler


def hub_handler(repositories: dict[str, dict[str, dict[str, bytes]]], private: tuple[str, ...] = ()):
    """What the Hub's client asks for to download: repository -> revision -> file -> bytes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: bool):
            match = re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            repo, revision, name = match.groups() if match else ("", "", "")
            if repo in private:
                return self.refuse(401, None)
            if repo not in repositories:
                return self.refuse(404, "RepoNotFound")
            revision = {commit: name for name, commit in COMMITS.items()}.get(revision, revision)
            if revision not in repositories[repo]:
                return self.refuse(404, "RevisionNotFound")
            content = repositories[repo][revision].get(name)
            if content is None:
                return self.refuse(404, "EntryNotFound", COMMITS[revision])
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMITS[revision])
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def refuse(self, status: int, code: str | None, commit: str | None = None):
            content = json.dumps({"error": code or "Invalid username or password."}).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            if commit:
                self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Error-Message", code or "Invalid username or password.")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def log_message(self, *args):
            pass

    return Handler
