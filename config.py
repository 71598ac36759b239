"""Every setting of the server, once.

Three ways to set one, the later winning: edit its default here, set the environment variable
`DEEPSEEK_OCR_<NAME>`, or give the flag (`BASE_SIZE` is `--base-size`). `python openai_api_server.py
--help` lists them all; so does the table in OPENAI_API_GUIDE.md, which is made from this file.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from deepseek_ocr.modes import ResolutionMode
from ocr_server.transport.keys import parse_keys

ROOT = Path(__file__).resolve().parent
EMBEDDED_CHECKPOINT = ROOT / "nano" / "checkpoint"
DATA = ROOT / "data"
PUBLISHED_MODEL = "deepseek-ai/DeepSeek-OCR"
ENV_PREFIX = "DEEPSEEK_OCR_"

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # it may be a key
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="openai_api_server.py",
        cli_shortcuts={"model-path": "model"},
    )

    # The server
    HOST: str = "0.0.0.0"
    """Address to listen on; 127.0.0.1 keeps the server to this machine."""
    PORT: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    MODEL_NAME: Annotated[str, Field(pattern=r"^[^:\s]+$")] = "deepseek-ocr"
    """The name that requests use. `<name>:<mode>` asks for a resolution mode."""
    SHUTDOWN_TIMEOUT: Seconds = 30.0
    """Seconds that requests in flight have to finish after SIGTERM."""
    LOG_LEVEL: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged."""

    # The model
    MODEL_PATH: str = "auto"
    """A folder or a Hugging Face id. `auto` is deepseek-ai/DeepSeek-OCR where there is an NVIDIA GPU,
    else the small embedded checkpoint."""
    MAX_MODEL_LEN: Annotated[int, Field(ge=256)] = 8192
    """Longest prompt and answer together, tokens, picture included; 8192 is the model's own limit."""
    GPU_MEMORY_UTILIZATION: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM may take for weights, activations and KV cache."""
    CPU_KV_CACHE_GIB: Positive = 2
    """Size of the KV cache without a GPU, GiB."""
    TENSOR_PARALLEL_SIZE: Positive = 1
    """GPUs that one copy of the model is spread over; this model fits on one."""
    DATA_PARALLEL_SIZE: Positive = 1
    """Copies of the model behind this one server, each on GPUs of its own. Several servers do the same."""
    MAX_CONCURRENCY: Positive = 100
    """Most pages that the engine reads at once; further ones wait."""
    ENFORCE_EAGER: bool = False
    """Skip torch.compile and CUDA graphs: starts sooner, reads slower. Without a GPU it is always so."""
    ENGINE_STALL_TIMEOUT: Annotated[float, Field(ge=0)] = 0.0
    """Seconds without a single token after which an engine that has pages to read is restarted; 0 is 120 with a GPU
    and 1200 without, where the pictures of a few large pages can take minutes."""
    ENGINE_RESTARTS: Annotated[int, Field(ge=0)] = 5
    """Most times within an hour that an engine which died or hangs is replaced; then the server ends."""

    # How pictures are read, unless a request says otherwise
    BASE_SIZE: int = 1024
    """Side of the global view, pixels."""
    IMAGE_SIZE: int = 640
    """Side of a tile, pixels."""
    CROP_MODE: bool = True
    """Cut pictures larger than a tile into tiles, beside the global view (gundam mode)."""
    MIN_CROPS: int = 2
    """Fewest tiles of a picture that is cut."""
    MAX_CROPS: int = 6
    """Most tiles of a picture; at most 9. Lower it where GPU memory is short."""
    DEFAULT_PROMPT: str = "<|grounding|>Convert the document to markdown."
    """What is asked about a picture that comes without text."""
    NGRAM_SIZE: Annotated[int, Field(ge=0, le=128)] = 30
    """No n-gram of this length is repeated within the window; 0 turns the guard off; at most 128."""
    WINDOW_SIZE: Annotated[int, Field(gt=0, le=8192)] = 90
    """How many of the last tokens the n-gram guard looks at."""
    LOOPS: Literal["off", "end", "retry"] = "retry"
    """Pages on which the model repeats itself: `end` them early, `retry` them with a stricter guard and then in
    another mode, or leave them to the guard alone."""
    PAGES_AT_ONCE: Positive = 32
    """Most pages of one request that are read at once; each takes about 20 MB while it is."""

    # What is accepted
    MAX_IMAGES: Positive = 64
    """Most pictures and documents in one request."""
    MAX_PAGES: Positive = 2000
    """Most pages in one request, those of all its documents together."""
    MAX_WAITING_PAGES: Positive = 4000
    """Pages waiting for their turn, from which on new requests are refused with 429 until there are fewer."""
    MAX_PAGES_OF_CLIENT: Annotated[int, Field(ge=0)] = 0
    """The same for each API key: pages waiting or being read; 0 for no such bound."""
    MAX_BODY_MB: Positive = 100
    """Largest request body, megabytes."""
    MAX_BODIES_MB: Positive = 1000
    """Bytes of the bodies of all requests that are under way, megabytes; what would go beyond is refused with 429. In
    memory they take up to three times as much."""
    RECEIVE_TIMEOUT: Seconds = 120.0
    """Seconds in which a request's head must have arrived, and then its body."""
    SEND_TIMEOUT: Seconds = 60.0
    """Seconds in which a client must take 48 KiB of an answer that waits for it; one that is slower is cut off."""
    MAX_IMAGE_MB: Positive = 50
    """Largest single picture or document, as a file, megabytes."""
    MAX_IMAGE_MEGAPIXELS: Positive = 100
    """Largest picture, decoded, megapixels; a larger page of a PDF is rendered at a lower resolution."""
    MAX_PROMPT_CHARS: Positive = 8000
    """Longest text beside a picture, characters."""
    ALLOW_URLS: bool = True
    """Fetch pictures from http(s) URLs."""
    ALLOW_PRIVATE_URLS: bool = False
    """Fetch also from private and loopback addresses. Leave it off where strangers can send requests."""
    ALLOWED_IMAGE_HOSTS: str = ""
    """The only hosts that pictures are fetched from, with commas between: `images.example.com`, or `*.example.com` for
    all below it; any if empty."""
    FETCH_TIMEOUT: Seconds = 20.0
    """Seconds in which a picture must have been fetched."""
    PREPARE_THREADS: Annotated[int, Field(ge=0)] = 0
    """Threads that resize pictures; 0 is one for each core, at most 16."""
    DECODE_WORKERS: Annotated[int, Field(ge=0)] = 0
    """Processes that decode pictures and render PDFs; 0 is one for each core, at most 8. They start when needed."""
    DECODE_TIMEOUT: Seconds = 30.0
    """Seconds that a page may take to be decoded or rendered."""
    DECODE_MEMORY_MB: Positive = 4000
    """Memory that such a process may take, megabytes of address space."""

    # Batches, and the files they need
    BATCHES: bool = True
    """Serve /v1/files and /v1/batches."""
    DATABASE_URL: SecretStr = SecretStr("")
    """Where files and batches are listed, as SQLAlchemy writes it: `postgresql+psycopg://user:password@host/name`.
    Empty is SQLite in the folder data of this project. Servers with one database and one storage share the work."""
    STORAGE_URL: str = ""
    """Where files lie, as fsspec writes it: a folder, or `s3://bucket/prefix`. Empty is data/files of this project."""
    BATCH_CONCURRENCY: Annotated[int, Field(ge=0)] = 0
    """Most pages of batches that are read at once, while no other request waits; 0 is half of MAX_CONCURRENCY."""
    BATCH_LEASE: Annotated[float, Field(ge=1)] = 30.0
    """Seconds after which another server takes over the batches of one that has died."""
    MAX_BATCH_REQUESTS: Positive = 50_000
    """Most requests in a batch."""
    MAX_BATCHES_OF_CLIENT: Positive = 100
    """Most batches of an API key that have not ended."""
    MAX_FILE_MB: Positive = 200
    """Largest file that is uploaded for a batch, megabytes; MAX_BODIES_MB bounds it too."""
    MAX_STORED_MB: Positive = 20_000
    """Bytes of all stored files and of the answers of unfinished batches, megabytes. Beyond it, uploads are refused,
    and what is left of a batch fails."""
    MAX_STORED_MB_OF_CLIENT: Annotated[int, Field(ge=0)] = 0
    """The same for each API key; 0 for no such bound."""
    FILE_DAYS: Positive = 30
    """Days after which a file is deleted, unless it says otherwise, and a batch that has ended is forgotten."""

    # Who may ask, and what is told
    API_KEYS: SecretStr = SecretStr("")
    """API keys, with commas between: `KEY`, `sha256:HASH` or either with a label for the log, `alice:KEY`. None, and no
    API_KEYS_FILE: anyone may ask. Set it in the environment rather than by the flag, which other users can see."""
    API_KEYS_FILE: str = ""
    """A file of further API keys, one a line, written the same way, # for comments; read again when it changes. If it
    is missing or empty, it lets nobody in."""
    METRICS_KEY_REQUIRED: bool = True
    """Whether /metrics needs an API key too, if there are any."""
    CORS_ORIGINS: str = ""
    """Origins whose web pages may use this server from a browser, with commas between, or *; none by default."""
    LOG_FORMAT: Literal["text", "json"] = "text"
    """Log lines for people, or one JSON object a line."""

    @field_validator("API_KEYS")
    @classmethod
    def _legal_keys(cls, value: SecretStr) -> SecretStr:
        parse_keys(value.get_secret_value())
        return value

    @field_validator("DATABASE_URL")
    @classmethod
    def _legal_database(cls, value: SecretStr) -> SecretStr:
        if "://" not in (value.get_secret_value() or "sqlite://"):
            raise ValueError("it is no URL, such as sqlite:////var/lib/ocr/batches.db")
        return value

    @field_validator("ALLOWED_IMAGE_HOSTS")
    @classmethod
    def _legal_hosts(cls, value: str) -> str:
        for host in _listed(value):
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:.]+", host):
                raise ValueError(f"{host!r} is no host, such as images.example.com or *.example.com")
        return value

    @field_validator("CORS_ORIGINS")
    @classmethod
    def _legal_origins(cls, value: str) -> str:
        for origin in _listed(value):
            if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
                raise ValueError(f"{origin!r} is no origin, such as https://example.org or http://localhost:3000")
        return value

    @model_validator(mode="after")
    def _legal_mode(self) -> Settings:
        _ = self.resolution_mode  # raises what is wrong with it
        if self.MAX_BODIES_MB < self.MAX_BODY_MB:
            raise ValueError(f"MAX_BODIES_MB must not be below MAX_BODY_MB ({self.MAX_BODY_MB})")
        if self.NGRAM_SIZE > self.WINDOW_SIZE:
            raise ValueError(f"NGRAM_SIZE must not be above WINDOW_SIZE ({self.WINDOW_SIZE})")
        return self

    @property
    def resolution_mode(self) -> ResolutionMode:
        """The mode of pictures for which a request names none."""
        return ResolutionMode(
            base_size=self.BASE_SIZE,
            image_size=self.IMAGE_SIZE,
            crop_mode=self.CROP_MODE,
            min_crops=self.MIN_CROPS,
            max_crops=self.MAX_CROPS,
        )

    @property
    def model_path(self) -> str:
        """MODEL_PATH with `auto` resolved."""
        if self.MODEL_PATH != "auto":
            return self.MODEL_PATH
        return PUBLISHED_MODEL if has_nvidia_gpu() else str(EMBEDDED_CHECKPOINT)

    @property
    def engine_stall_timeout(self) -> float:
        """ENGINE_STALL_TIMEOUT with 0 resolved, seconds."""
        return self.ENGINE_STALL_TIMEOUT or (120.0 if has_nvidia_gpu() else 1200.0)

    @property
    def database_url(self) -> str:
        """DATABASE_URL with its default resolved."""
        return self.DATABASE_URL.get_secret_value() or f"sqlite:///{DATA / 'batches.db'}"

    @property
    def storage_url(self) -> str:
        """STORAGE_URL with its default resolved."""
        return self.STORAGE_URL or str(DATA / "files")

    @property
    def batch_concurrency(self) -> int:
        """BATCH_CONCURRENCY with 0 resolved."""
        return self.BATCH_CONCURRENCY or max(1, self.MAX_CONCURRENCY // 2)

    @property
    def allowed_image_hosts(self) -> tuple[str, ...]:
        """ALLOWED_IMAGE_HOSTS one by one, in lower case."""
        return tuple(host.lower() for host in _listed(self.ALLOWED_IMAGE_HOSTS))

    @property
    def cors_origins(self) -> list[str]:
        """CORS_ORIGINS one by one."""
        return _listed(self.CORS_ORIGINS)

    @property
    def checkpoint_name(self) -> str:
        """What is served, as it may be shown to clients: no path of this machine."""
        if self.is_embedded:
            return "the embedded checkpoint (nano)"
        folder = Path(self.model_path)
        return folder.name if folder.is_dir() else self.model_path

    @property
    def is_embedded(self) -> bool:
        """Whether the small embedded checkpoint is served, not the real model."""
        return Path(self.model_path).resolve() == EMBEDDED_CHECKPOINT


def load(arguments: list[str] | None = None) -> Settings:
    """Settings from this file, the environment and flags; exits with a clear message if one is wrong."""
    try:
        return CliApp.run(Settings, cli_args=sys.argv[1:] if arguments is None else arguments)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else "settings"
            print(f"error: {name}: {problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        print("Run with --help to see every setting.", file=sys.stderr)
        raise SystemExit(2) from None


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def has_nvidia_gpu() -> bool:
    """Whether there is a GPU that the installed torch can use."""
    import torch  # takes seconds, and most settings need no answer

    return bool(torch.cuda.is_available())
