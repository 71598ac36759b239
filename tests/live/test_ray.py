"""A real Ray cluster on this machine, with real engines, set up as described in docs/scaling.md.

By default, there is one replica. With RAY_REPLICAS=2, a replica is also killed under load, and an update is deployed
under load.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from live_requests import RECEIPT, SIGN, ask, truth
from live_server import ROOT, WAIT_SECONDS, environment, free_port, wait_until
from openai import OpenAI

from config import EMBEDDED_CHECKPOINT
from tests.processes import descendants

REPLICAS = int(os.environ.get("RAY_REPLICAS", "1"))
pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
full = pytest.mark.skipif(REPLICAS < 2, reason="the full form: RAY_REPLICAS=2")
BIN = Path(sys.executable).parent
START_SECONDS = 300.0
SIGNS = 62
"""Number of copies of the sign in the corpus."""


class Cluster:
    """A head node, and the server deployed on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._dashboard, self.http, self.metrics = (free_port() for _ in range(4))
        self.url = f"http://127.0.0.1:{self.http}"
        self.environment = environment() | {
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
        }
        with (folder / "ray.log").open("wb") as log:
            flags = [
                f"--port={self._port}",
                f"--dashboard-port={self._dashboard}",
                "--num-cpus=8",
                "--include-dashboard=true",
            ]
            self._head = subprocess.Popen(
                [BIN / "ray", "start", "--head", "--block", *flags],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.address = f"127.0.0.1:{self._port}"

    def deploy(self, **settings: Any) -> None:
        """Deploy the documented configuration with the embedded checkpoint, without GPUs, and wait until it runs."""
        configuration = yaml.safe_load((ROOT / "deploy" / "ray_serve.yaml").read_text())
        configuration["http_options"] |= {"host": "127.0.0.1", "port": self.http}
        application = configuration["applications"][0]
        application["args"]["metrics_port"] = self.metrics
        application["args"]["settings"] = {
            "MODEL_PATH": str(EMBEDDED_CHECKPOINT),
            "CPU_KV_CACHE_GIB": 1,
            "MAX_CONCURRENCY": 8,
        } | settings
        deployment = application["deployments"][0]
        deployment["ray_actor_options"] = {"num_cpus": 1}
        deployment["health_check_period_s"] = 1
        deployment["autoscaling_config"] |= {"min_replicas": REPLICAS, "max_replicas": REPLICAS}
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(configuration))
        dashboard = f"http://127.0.0.1:{self._dashboard}"

        def deployed() -> bool:
            command = [BIN / "serve", "deploy", path, "--address", dashboard]
            return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True).returncode == 0

        wait_until("the cluster takes deployments", deployed, 120, every=2)
        wait_until("the replicas run", self._running, START_SECONDS, every=1)

    def _running(self) -> bool:
        command = [BIN / "serve", "status", "--address", f"http://127.0.0.1:{self._dashboard}"]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True)
        found = yaml.safe_load(done.stdout) if done.returncode == 0 else None
        application = ((found or {}).get("applications") or {}).get("deepseek-ocr") or {}
        assert application.get("status") != "DEPLOY_FAILED", application
        return application.get("status") == "RUNNING"

    def replicas(self) -> list[psutil.Process]:
        return list(descendants(self._head.pid, "ServeReplica:deepseek-ocr:OcrServer"))

    def stop(self) -> None:
        family = list(descendants(self._head.pid))
        self._head.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(self._head.pid), *family], timeout=5)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._head.wait(10)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    try:
        cluster.deploy()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def sdk(cluster: Cluster) -> OpenAI:
    return OpenAI(base_url=f"{cluster.url}/v1", api_key="EMPTY", timeout=300, max_retries=8)


def read(sdk: OpenAI, picture: Path = SIGN) -> str:
    return sdk.chat.completions.create(model="deepseek-ocr", messages=ask(picture)).choices[0].message.content or ""  # type: ignore[arg-type]


class TestServe:
    def test_answers_are_the_same_as_on_one_machine(self, sdk: OpenAI, cluster: Cluster) -> None:
        assert read(sdk) == truth(SIGN)
        pieces = sdk.chat.completions.create(model="deepseek-ocr", messages=ask(RECEIPT), stream=True)  # type: ignore[call-overload]
        texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
        assert "".join(texts) == truth(RECEIPT)
        assert sum(map(bool, texts)) > 1
        answer = httpx.get(f"{cluster.url}/health")
        assert answer.json()["status"] == "ok"
        assert answer.headers.get_list("x-request-id")

    def test_errors_have_openais_format(self, cluster: Cluster) -> None:
        answer = httpx.post(f"{cluster.url}/v1/chat/completions", json={"model": "deepseek-ocr", "messages": 1})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages"

    def test_a_client_that_disconnects_aborts_its_work(self, cluster: Cluster) -> None:
        body = {"model": "deepseek-ocr", "messages": ask(RECEIPT), "stream": True, "n": 4}
        with httpx.stream("POST", f"{cluster.url}/v1/chat/completions", json=body, timeout=WAIT_SECONDS) as answer:
            next(answer.iter_lines())
        wait_until("its pages are aborted", lambda: self.in_flight(cluster) == 0, every=0.5)

    @staticmethod
    def in_flight(cluster: Cluster) -> float:
        """Return the number of pages in flight in all replicas."""
        found = 0.0
        for port in range(cluster.metrics, cluster.metrics + REPLICAS):
            page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            found += float(re.findall(r"^ocr_pages_in_flight (\S+)", page, re.MULTILINE)[0])
        return found

    def test_batches_are_not_available(self, cluster: Cluster) -> None:
        assert httpx.get(f"{cluster.url}/v1/batches").status_code == 404

    @full
    def test_a_replica_is_killed_under_load(self, sdk: OpenAI, cluster: Cluster) -> None:
        with Load(sdk) as load:
            load.wait(6)
            cluster.replicas()[0].kill()
            load.wait(20)
            wait_until("the replica is replaced", lambda: len(cluster.replicas()) == REPLICAS, START_SECONDS, every=1)
        assert load.failures == []
        assert load.wrong == []

    @full
    def test_an_update_under_load(self, sdk: OpenAI, cluster: Cluster) -> None:
        before = {process.pid for process in cluster.replicas()}
        with Load(sdk) as load:
            load.wait(4)
            cluster.deploy(MODEL_NAME="deepseek-ocr", MAX_CONCURRENCY=6)
            load.wait(4)
        assert {process.pid for process in cluster.replicas()}.isdisjoint(before)
        assert load.failures == []
        assert load.wrong == []


class Load:
    """Four clients that read the sign repeatedly, with no retries except the SDK's."""

    def __init__(self, sdk: OpenAI) -> None:
        self._sdk = sdk
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(4)]
        self.answers = 0
        self.failures: list[str] = []
        self.wrong: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        print(f"{self.answers} answers")

    def wait(self, more: int) -> None:
        """Wait for `more` answers."""
        goal = self.answers + more
        wait_until(f"{more} answers", lambda: self.answers >= goal or bool(self.failures), 300, every=0.2)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                text = read(self._sdk)
            except Exception as error:
                self.failures.append(repr(error))
                return
            self.answers += 1
            if text != truth(SIGN):
                self.wrong.append(text)


def modification_times(out: Path, shards: set[str]) -> dict[str, int]:
    """Return when each shard was written."""
    return {shard: (out / "pages" / f"{shard}.parquet").stat().st_mtime_ns for shard in sorted(shards)}


class TestCorpus:
    """Each image is a shard. Readers get 16 images at a time, so that the corpus is read in several batches."""

    def test_a_killed_job_is_resumed(self, cluster: Cluster, tmp_path: Path) -> None:
        scans, out = tmp_path / "scans", tmp_path / "out"
        scans.mkdir()
        for number in range(SIGNS):
            (scans / f"sign{number}.png").write_bytes(SIGN.read_bytes())
        (scans / "broken.png").write_bytes(SIGN.read_bytes()[:500])
        (scans / "receipt.png").write_bytes(RECEIPT.read_bytes())
        command = [sys.executable, "-m", "deploy.ray_corpus", str(scans), str(out), "--shard=1", "--gpus=0", "--cpus=1"]
        command += [
            "--openers=1",
            "--prompt=Free OCR.",
            f"--model={EMBEDDED_CHECKPOINT}",
            "--setting=CPU_KV_CACHE_GIB=1",
        ]
        command += [f"--address={cluster.address}"]
        job = subprocess.Popen(command, env=cluster.environment, cwd=ROOT)
        wait_until("a shard is done", lambda: len(list(out.glob("done/*.json"))) >= 2, START_SECONDS, every=0.05)
        job.kill()
        job.wait()
        done_first = {path.stem for path in out.glob("done/*.json")}
        assert len(done_first) < SIGNS + 2, "the job ended before it could be killed"
        first = modification_times(out, done_first)
        done = subprocess.run(command, env=cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "Resuming" in done.stdout
        rows = {
            Path(row["url"]).name: row
            for path in sorted(out.glob("pages/*.parquet"))
            for row in pq.read_table(path).to_pylist()
        }
        assert {name: row["markdown"] for name, row in rows.items() if row["error"] is None} == {
            "receipt.png": truth(RECEIPT),
            **{f"sign{number}.png": truth(SIGN) for number in range(SIGNS)},
        }
        assert rows["broken.png"]["error"]
        assert len(list(out.glob("done/*.json"))) == SIGNS + 2
        assert modification_times(out, done_first) == first  # finished shards are not read again
        failed = [json.loads(path.read_text())["failed"] for path in out.glob("done/*.json")]
        assert sum(map(len, failed)) == 1
