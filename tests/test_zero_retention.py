"""ZERO_RETENTION: nothing of requests and answers is written to a disk or to the log."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import EMBEDDED_CHECKPOINT, ROOT, Settings
from ocr_server.app import create_app
from ocr_server.observability import logs
from ocr_server.runtime import Runtime
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, client_of, says

KEEPS_NOTHING = """
import json, os, resource, sys, tempfile
import config, openai_api_server
from starlette.datastructures import UploadFile

folder = sys.argv[1]
openai_api_server.keep_nothing(
    config.Settings(
        ZERO_RETENTION=True,
        DATABASE_URL=f"sqlite:///{folder}/batches.db",
        STORAGE_URL=f"{folder}/none",
    )
)
spooled = tempfile.SpooledTemporaryFile(max_size=1000)
spooled.write(b"x" * 5000)
files = [tempfile.TemporaryFile(), tempfile.NamedTemporaryFile(), spooled]
memory = os.stat("/dev/shm").st_dev
in_memory = [os.fstat(file.fileno()).st_dev == memory for file in files]
print(json.dumps([in_memory, resource.getrlimit(resource.RLIMIT_CORE)]))
"""


def settings_of(folder: Path, **more: object) -> Settings:
    return Settings.model_validate(
        {
            "MODEL_PATH": str(EMBEDDED_CHECKPOINT),
            "ZERO_RETENTION": True,
            "DATABASE_URL": f"sqlite:///{folder}/data/batches.db",
            "STORAGE_URL": f"{folder}/data/files",
            "ALLOW_URLS": False,
            **more,
        }
    )


async def test_there_are_no_files_and_batches(tmp_path: Path) -> None:
    app = create_app(Runtime.build(settings_of(tmp_path), FakeEngine()))
    async with app.router.lifespan_context(app), client_of(app) as client:
        for path in ("/v1/files", "/v1/batches"):
            assert (await client.get(path)).status_code == 404
        assert "batches" not in (await client.get("/")).text
        assert (await client.post(CHAT, json=chat())).status_code == 200
    assert os.listdir(tmp_path) == []


async def test_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in logs.VERBOSE_LOGGERS:
        caplog.set_level(logging.INFO, name)  # as `logs.set_up` does
    app = create_app(Runtime.build(settings_of(tmp_path), FakeEngine(says("the secret answer"))))
    async with client_of(app) as client:
        body = chat()
        body["messages"][0]["content"].append({"type": "text", "text": "the secret prompt"})
        for each in (body, {**body, "stream": True}, {**body, "colour": "the secret colour"}):
            await client.post(CHAT, json=each)
    assert "/v1/chat/completions" in caplog.text
    assert "secret" not in caplog.text


def test_it_excludes_batches(tmp_path: Path) -> None:
    assert not settings_of(tmp_path).serves_batches
    with pytest.raises(ValueError, match="ZERO_RETENTION excludes BATCHES"):
        settings_of(tmp_path, BATCHES=True)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a file system in memory")
def test_temporary_files_are_in_memory_and_there_are_no_core_dumps(tmp_path: Path) -> None:
    (tmp_path / "batches.db").touch()
    run = subprocess.run(
        [sys.executable, "-c", KEEPS_NOTHING, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == [[True] * 3, [0, 0]]
    assert f"{tmp_path}/batches.db has been left by an earlier run" in run.stderr
    assert "none" not in run.stderr
