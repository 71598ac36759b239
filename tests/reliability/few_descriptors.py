"""A server with a fake engine in a process that has few file descriptors.

Run it with `python -m`. Arguments: the limit on descriptors, and how many of them something else uses. Prints the port.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys

from config import EMBEDDED_CHECKPOINT, Settings
from ocr_server.observability import logs
from ocr_server.runtime import Runtime
from ocr_server.transport.descriptors import raise_limit
from openai_api_server import listen, server_for
from tests.ocr_server.conftest import FakeEngine


async def serve(used: int) -> None:
    listener = listen("127.0.0.1", 0)
    settings = Settings(MODEL_PATH=str(EMBEDDED_CHECKPOINT), BATCHES=False)
    server = server_for(Runtime.build(settings, FakeEngine()), listener)
    for _ in range(used):
        os.open(os.devnull, os.O_RDONLY)
    print(listener.getsockname()[1], flush=True)
    await server.serve(sockets=[listener])


if __name__ == "__main__":
    limit, taken = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit // 2, limit))
    raise_limit()
    logs.set_up("info", "text")
    asyncio.run(serve(taken))
