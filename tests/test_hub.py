# Copyright 2026 The modeling-qrnn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""`push_to_hub` uploads models with their code, and what was uploaded loads without the package.

The client is the real one, in processes of its own, because it reads its endpoint from the environment when it is
imported; the Hub is a local server with just the requests that the client makes.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


PACKAGE = Path(__file__).parent.parent / "modeling_qrnn"
# No model imports the others.
CODE_OF_MODELS = {
    PACKAGE / f"{name}_qrnn.py"
    for name in ("cache", "configuration", "layers", "modeling", "pooling", "pooling_numba", "pooling_triton")
}
COMMIT = "c" * 40

AUTO_CLASSES = {
    "someone/qrnn-base": AutoModel,
    "someone/qrnn-causal": AutoModelForCausalLM,
    "someone/qrnn-masked": AutoModelForMaskedLM,
    "someone/qrnn-sequence": AutoModelForSequenceClassification,
    "someone/qrnn-token": AutoModelForTokenClassification,
}


class Hub(ThreadingHTTPServer):
    """Keeps the files of each repository, and the large ones by their hash."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.large_files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if len(parts) > 4 and parts[2] == "resolve":
            return self.answer_file("/".join(parts[:2]), "/".join(parts[4:]))
        return self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD

    def do_POST(self):
        body, path = self.body(), self.path.split("?")[0]
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}"
            self.server.repositories[name] = {}
            return self.answer(200, {"url": f"{self.server.url}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            return self.answer(200, {"files": [upload_mode(file) for file in json.loads(body)["files"]]})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.answer(200, {"transfer": "basic", "objects": self.upload_addresses(json.loads(body))})
        if path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            self.commit(name, [json.loads(line) for line in body.splitlines()])
            commit_url = f"{self.server.url}/{name}/commit/{COMMIT}"
            return self.answer(200, {"success": True, "commitUrl": commit_url, "commitOid": COMMIT})
        return self.answer(404, {})

    def do_PUT(self):
        body, oid = self.body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large_files[oid] = body
        self.answer(200, {})

    def upload_addresses(self, request: dict) -> list[dict]:
        return [
            {**file, "actions": {"upload": {"href": f"{self.server.url}/large/{file['oid']}"}}}
            for file in request["objects"]
        ]

    def commit(self, name: str, lines: list[dict]) -> None:
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]

    def answer_file(self, name: str, path: str) -> None:
        content = self.server.repositories[name].get(path)
        if content is None:
            return self.answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, content: dict | bytes, headers: dict[str, str] | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


def upload_mode(file: dict) -> dict:
    mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


@pytest.fixture
def hub():
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(function, hub: Hub, folder: Path, *python_options: str) -> None:
    """Run a function of this file in a fresh interpreter whose Hub is the local server."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / function.__name__),
        "HF_HUB_DISABLE_XET": "1",  # files go through the Hub's other protocol, that of git LFS
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, *python_options, __file__, function.__name__, str(folder)]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_pushed_models_load_from_the_hub(hub, tmp_path):
    run(push, hub, tmp_path)
    assert set(hub.repositories) == set(AUTO_CLASSES)
    assert len(hub.large_files) == len(AUTO_CLASSES)
    code = {path.name: path.read_bytes() for path in CODE_OF_MODELS}
    for name, files in hub.repositories.items():
        assert {"config.json", "model.safetensors", "README.md", *code} <= set(files)
        assert {path: files[path] for path in code} == code
        auto_map = json.loads(files["config.json"])["auto_map"]
        assert set(auto_map) == {"AutoConfig"} | {auto_class.__name__ for auto_class in AUTO_CLASSES.values()}, name
    run(load, hub, tmp_path, "-I")


# --- the functions that run there ---


def make_batch() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    return {"input_ids": torch.arange(12).view(2, 6), "attention_mask": mask}


@torch.no_grad()
def push(folder: Path) -> None:
    sys.path.insert(0, str(PACKAGE.parent))
    from modeling_qrnn import QRNNConfig

    torch.manual_seed(0)
    for name, auto_class in AUTO_CLASSES.items():
        is_masked = auto_class is AutoModelForMaskedLM
        config = QRNNConfig(vocab_size=30, hidden_size=8, kernel_size=3, bidirectional=is_masked, num_labels=3)
        model = auto_class.from_config(config).eval()
        model.push_to_hub(name)
        torch.save(model(**make_batch())[0], folder / f"{name.replace('/', '-')}.pt")


@torch.no_grad()
def load(folder: Path) -> None:
    sys.modules["modeling_qrnn"] = None  # it may be installed where the tests run: importing it is now an error
    for name, auto_class in AUTO_CLASSES.items():
        model = auto_class.from_pretrained(name, trust_remote_code=True).eval()
        assert type(model.config) is type(AutoConfig.from_pretrained(name, trust_remote_code=True))
        expected = torch.load(folder / f"{name.replace('/', '-')}.pt")
        assert torch.equal(model(**make_batch())[0], expected), name
        # Saved again, the model is on its own: its code does not stay behind at the Hub.
        again = folder / "again" / name
        model.save_pretrained(again)
        assert torch.equal(
            auto_class.from_pretrained(again, trust_remote_code=True).eval()(**make_batch())[0], expected
        )
        assert "--" not in (again / "config.json").read_text()
        assert {path.name for path in again.glob("*.py")} == {path.name for path in CODE_OF_MODELS}


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
