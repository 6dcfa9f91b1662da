"""Models by their name on the hub, from a local stand-in for it and from its cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

COMMIT = "0" * 40
PROGRAM = """
import sys
from mirror_edge.errors import MirrorEdgeError
from mirror_edge.export import export
stages = {}
try:
    export(*sys.argv[1:4], precision="fp32", on_progress=stages.__setitem__)
except MirrorEdgeError as error:
    sys.exit(str(error))
print(*(stage for stage in stages if stage.startswith("Downloading")), sep="\\n")
assert all(share <= 1 for share in stages.values())
"""


def run(target: str, draft: str, output: Path, **environment: str) -> tuple[str, str]:
    """Standard output and error of an export in a process of its own: the hub's settings are."""
    command = [sys.executable, "-P", "-c", PROGRAM, target, draft, output]
    settings = {**os.environ, "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    return done.stdout, done.stderr


@pytest.fixture
def hub(target: Path, draft: Path) -> Iterator[str]:
    """The address of a hub that has acme/large and acme/small."""
    repositories = {"acme/large": target, "acme/small": draft}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0].removeprefix("/api/models").strip("/")
            name = "/".join(path.split("/")[:2])
            folder = repositories.get(name)
            if folder is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if "/resolve/" in path:
                content = (folder / path.rsplit("/", 1)[1]).read_bytes()
            elif "/tree/" in path:
                files = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
                    for file in folder.iterdir()
                ]
                content = json.dumps(files).encode()
            else:
                siblings = [{"rfilename": file.name} for file in folder.iterdir()]
                content = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_hub_names_are_downloaded_with_progress(hub: str, tmp_path: Path) -> None:
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home")}
    output, errors = run("acme/large", "acme/small", tmp_path / "bundle", **settings)
    assert output.split("\n")[:2] == ["Downloading acme/large", "Downloading acme/small"], errors
    assert errors == ""

    _, errors = run("acme/none", "acme/small", tmp_path / "other", **settings)
    assert (
        "TARGET acme/none: there is no such folder, and it could not be downloaded from" in errors
    )


def test_hub_names_are_found_in_the_offline_cache(
    target: Path, draft: Path, tmp_path: Path
) -> None:
    for name, source in (("acme/large", target), ("acme/small", draft)):
        cached = tmp_path / "home/hub" / ("models--" + name.replace("/", "--"))
        shutil.copytree(source, cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs/main").write_text(COMMIT)
    offline = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    output, errors = run("acme/large", "acme/small", tmp_path / "bundle", **offline)
    assert (output, errors) == ("\n", "")
    assert (tmp_path / "bundle/mirror_edge.json").is_file()

    _, errors = run("acme/none", "acme/small", tmp_path / "other", **offline)
    assert (
        "TARGET acme/none: there is no such folder, and it could not be downloaded from" in errors
    )
