"""The entry point: settings → engine → application → server.

    python openai_api_server.py [--port 8080] [--model FOLDER_OR_HUB_ID] …

`--help` lists every flag.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import uvicorn

import config
from ocr_server.engine.build import prepare_process
from ocr_server.engine.environment import VLLM_LOG_LEVELS
from ocr_server.intake.sandbox.privileges import close_to_others
from ocr_server.observability import logs
from ocr_server.transport import descriptors
from ocr_server.transport.boundary import reachable_by
from ocr_server.transport.connection_limits import ConnectionLimits
from ocr_server.transport.connections import protocol, set_options

if TYPE_CHECKING:
    from ocr_server.runtime import Runtime

TRIM_SECONDS = 10.0
BACKLOG = 2048
"""Connections that the operating system completes before they are accepted."""
ACCEPTED_AT_ONCE = 32
"""Connections that asyncio accepts before the limit on connections is checked: fewer than there are descriptors for
other purposes."""
MEMORY_FOLDER = "/dev/shm"
"""A file system in memory."""
LAST_STEPS_SECONDS = 3.0
"""After an immediate stop: the time to close what the application holds, once the engine is gone."""


def main() -> int:
    settings = config.load()
    logs.set_up(settings.LOG_LEVEL, settings.LOG_FORMAT)
    logging.getLogger("vllm").setLevel(VLLM_LOG_LEVELS[settings.LOG_LEVEL])
    try:
        listener = listen(settings.HOST, settings.PORT)
    except OSError as error:
        print(f"error: can't listen on {settings.HOST}:{settings.PORT}: {error.strerror}.", file=sys.stderr)
        print("Another program may be using the port. Stop it, or choose another port: --port 8080.", file=sys.stderr)
        return 1
    set_options(listener, settings.SEND_TIMEOUT)
    if settings.ZERO_RETENTION:
        keep_nothing(settings)
    os.environ.pop("DEEPSEEK_OCR_API_KEYS", None)  # the processes that are started from here do not need them
    if not settings.DEBUGGABLE:
        close_to_others()
    descriptors.raise_limit()
    prepare_process(settings)
    return asyncio.run(serve(settings, listener))


def keep_nothing(settings: config.Settings) -> None:
    """Hold temporary files in memory, and write no core dumps, which would contain documents.

    Raises:
        SystemExit: This machine has no file system in memory.
    """
    if not os.access(MEMORY_FOLDER, os.W_OK):
        raise SystemExit(f"error: ZERO_RETENTION needs {MEMORY_FOLDER}, a file system in memory that can be written.")
    tempfile.tempdir = MEMORY_FOLDER
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # child processes inherit it
    database = settings.database_url.removeprefix("sqlite:///")
    for left in (database, settings.storage_url):
        if Path(left).exists():
            logging.warning("ZERO_RETENTION: %s has been left by an earlier run. Delete it if it is not needed.", left)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. It is bound before the model loads, so that a port in use is reported at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


async def give_memory_back() -> None:
    """Periodically return freed heap memory to the operating system.

    glibc keeps it for later allocations. That halves the time to prepare a page, most of which would be page faults,
    but after many simultaneous requests it is half a gigabyte.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:  # None in another C library
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(trim, 0)


class Server(uvicorn.Server):
    """After a first signal, requests in flight have time to finish. A second signal ends the server immediately."""

    stop_at_once: Callable[[], object] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio has reduced it to the number of connections that it accepts at once

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and self.stop_at_once is not None:
            self.stop_at_once()
        super().handle_exit(sig, frame)


def server_for(runtime: Runtime, listener: socket.socket) -> Server:
    """Return the server of an application. Call this in its event loop.

    Args:
        runtime: What reads pages.
        listener: The listening socket.
    """
    from ocr_server.app import create_app
    from ocr_server.observability import tracing

    settings = runtime.settings
    connections = ConnectionLimits(
        total=descriptors.most_connections(settings.MAX_CONNECTIONS),
        of_address=settings.MAX_CONNECTIONS_OF_ADDRESS,
    )
    asyncio.get_running_loop().set_exception_handler(descriptors.OutOfDescriptors(listener, connections))
    return Server(
        uvicorn.Config(
            create_app(runtime, tracing.provider()),
            log_config=None,
            http=protocol(
                receive_timeout=settings.RECEIVE_TIMEOUT,
                send_timeout=settings.SEND_TIMEOUT,
                memory=runtime.memory,
                connections=connections,
            ),
            backlog=ACCEPTED_AT_ONCE,
            access_log=False,  # observability/logs.py writes one line for each request
            timeout_graceful_shutdown=int(settings.SHUTDOWN_TIMEOUT),
            timeout_keep_alive=60,
        )
    )


async def serve(settings: config.Settings, listener: socket.socket) -> int:
    """Serve until a signal arrives, the model fails to load, or the engine dies too often.

    Returns:
        The exit code: 0 only if the server ended because of a signal, with every request answered or timed out.
    """
    from ocr_server.engine.build import dedicated_engine
    from ocr_server.runtime import Runtime

    engine = dedicated_engine(settings)
    server = server_for(Runtime.build(settings, engine), listener)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn acts on these and then calls the earlier handlers: a regular end is not a failure.
        signal.signal(number, lambda *_: None)
    access = reachable_by(settings.HOST, keys=settings.has_keys, origins=settings.cors_origins)
    logging.log(logging.INFO if settings.has_keys else logging.WARNING, access)
    print(f"Loading {settings.checkpoint_name} …", flush=True)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    server.stop_at_once = serving.cancel
    loading = asyncio.create_task(engine.loaded())
    trimming = asyncio.create_task(give_memory_back())
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    failed = False
    if serving.done() or loading.cancelled():  # a signal came before the model was loaded
        loading.cancel()
    elif (error := loading.exception()) is not None:
        failed = server.should_exit = True
        explain(error)
    else:
        print(welcome(settings, listener.getsockname()[1]), flush=True)
        hopeless = asyncio.create_task(engine.given_up())
        await asyncio.wait({serving, hopeless}, return_when=asyncio.FIRST_COMPLETED)
        if hopeless.done():
            failed = server.should_exit = True
        hopeless.cancel()
    await asyncio.wait({serving})
    trimming.cancel()
    if serving.cancelled():
        logging.warning("Stopped immediately: requests in flight were aborted.")
        await engine.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_STEPS_SECONDS):
                await server.lifespan.shutdown()  # otherwise its task is cancelled, too, and logs a traceback
        return 1
    serving.result()
    return 1 if failed else 0


def explain(error: BaseException) -> None:
    """Report why the model could not be loaded, without a traceback where the user can do something about it."""
    from ocr_server.engine.preflight import LoadError

    if isinstance(error, LoadError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        logging.error("The model could not be loaded.", exc_info=error)


def leave(code: int) -> NoReturn:
    """End the process and its children, without waiting for threads that may still be loading a model."""
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def welcome(settings: config.Settings, port: int) -> str:
    """Return the text that says what is served and how to try it."""
    host = "localhost" if settings.HOST in ("0.0.0.0", "::") else settings.HOST
    base = f"http://{host}:{port}"
    key = "one of your API keys" if settings.has_keys else "'EMPTY'"
    python = ".venv/bin/python" if Path(sys.prefix) == config.ROOT / ".venv" else "python"
    lines = [
        "",
        f"DeepSeek-OCR is ready at {base}/v1 (model {settings.MODEL_NAME!r}, api_key {key}),",
        f"serving {settings.checkpoint_name}.",
    ]
    if settings.is_embedded:
        lines += [
            "This is the small embedded checkpoint, for trying things out. It reads clean, large print only.",
            f"The real model on this machine (slow without a GPU): ./start_server.sh --model {config.PUBLISHED_MODEL}",
        ]
    lines += [
        f"Try it:   {python} test_openai_client.py examples/receipt.png --base-url {base}/v1",
        f"Look at:  {base}/docs",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    leave(main())
