"""All settings of the server, each defined and documented in one place.

A setting can be changed in three ways, in order of increasing precedence: edit its default in this file, set the
environment variable `DEEPSEEK_OCR_<NAME>`, or pass the flag (`BASE_SIZE` becomes `--base-size`).
`python openai_api_server.py --help` lists all settings, and so does the table in OPENAI_API_GUIDE.md, which is
generated from this file.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from deepseek_ocr.families import Family, family_of
from deepseek_ocr.modes import ResolutionMode
from ocr_server.memory import default_capacity
from ocr_server.setting_types import (
    DatabaseUrl,
    DetailModes,
    Hosts,
    HostsOrAll,
    Keys,
    Origins,
    Positive,
    Seconds,
    detail_modes,
    split_list,
)

ROOT = Path(__file__).resolve().parent
EMBEDDED_CHECKPOINT = ROOT / "nano" / "checkpoint"
DATA = ROOT / "data"
PUBLISHED_MODEL = "deepseek-ai/DeepSeek-OCR"
ENV_PREFIX = "DEEPSEEK_OCR_"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # the input may be an API key
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="openai_api_server.py",
        cli_shortcuts={"model-path": "model"},
    )

    # The server
    HOST: str = "0.0.0.0"
    """Address to listen on. Use 127.0.0.1 to accept connections from this machine only."""
    PORT: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on. 0 selects a free port."""
    MODEL_NAME: Annotated[str, Field(pattern=r"^[^:\s]+$")] = "deepseek-ocr"
    """Model name that clients use in requests. `<name>:<mode>` selects a resolution mode, `<name>:<output>` an output
    format, and `<name>:<mode>:<output>` both."""
    MODEL_ALIASES: str = "deepseek-ai/DeepSeek-OCR,DeepSeek-OCR,deepseek-ocr:latest,deepseek-ocr:3b,mistral-ocr-*"
    """Comma-separated list of other names for the model, where * stands for any text. Upper and lower case are the
    same. A single * accepts every name, for tools whose model cannot be chosen."""
    SHUTDOWN_TIMEOUT: Seconds = 30.0
    """Seconds that requests in progress have to finish after SIGTERM."""
    LOG_LEVEL: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of the messages that are logged."""

    # The model
    MODEL_PATH: str = "auto"
    """Folder or Hugging Face id of the model. `auto` selects deepseek-ai/DeepSeek-OCR if there is an NVIDIA GPU, and
    otherwise the small embedded checkpoint."""
    MODEL_REVISION: str = ""
    """Branch, tag or commit of a model on Hugging Face. A full commit hash pins the weights: nothing that is published
    later under the same name is loaded. Empty selects the latest commit of `main`."""
    MAX_MODEL_LEN: Annotated[int, Field(ge=256)] = 8192
    """Maximum number of tokens of prompt, image and answer together. The model's own limit is 8192."""
    GPU_MEMORY_UTILIZATION: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of the GPU's memory that vLLM may use for weights, activations and KV cache."""
    CPU_KV_CACHE_GIB: Positive = 2
    """Size of the KV cache in GiB when running without a GPU."""
    TENSOR_PARALLEL_SIZE: Positive = 1
    """Number of GPUs that one copy of the model is spread over. This model fits on a single GPU."""
    DATA_PARALLEL_SIZE: Positive = 1
    """Number of copies of the model behind this server, each on its own GPUs. Several servers have the same effect."""
    MAX_CONCURRENCY: Positive = 100
    """Maximum number of pages that the engine reads at the same time. Further pages wait."""
    ENFORCE_EAGER: bool = False
    """Disable torch.compile and CUDA graphs: the server starts sooner and reads more slowly. Always in effect without a
    GPU."""
    ENGINE_STALL_TIMEOUT: Seconds = 120.0
    """Seconds after which an engine that has pages to read and makes no step is restarted. Without a GPU, it is ten
    times as many as long as the engine computes, because encoding a few large pages on a CPU can take minutes."""
    ENGINE_RESTARTS: Annotated[int, Field(ge=0)] = 5
    """Maximum number of times per hour that an engine which crashed or hangs is replaced. After that, the server
    exits."""

    # How images are read, unless the request says otherwise
    BASE_SIZE: int = 1024
    """Side length of the global view in pixels."""
    IMAGE_SIZE: int = 640
    """Side length of a tile in pixels."""
    CROP_MODE: bool = True
    """Split images that are larger than a tile into tiles, in addition to the global view (gundam mode)."""
    MIN_CROPS: int = 2
    """Minimum number of tiles for an image that is split."""
    MAX_CROPS: int = 6
    """Maximum number of tiles per image, up to 9. Lower it if GPU memory is short."""
    DEFAULT_PROMPT: str = "<|grounding|>Convert the document to markdown."
    """Prompt for images that are sent without text."""
    DEFAULT_OUTPUT: Literal["auto", "raw", "markdown", "blocks"] = "auto"
    """Output format of chat requests that do not select one. `auto` is `raw` for requests with a prompt, and `markdown`
    for those without."""
    DETAIL_MODES: DetailModes = "low=base,high=gundam,original=gundam"
    """Resolution mode for each `detail` of a picture. Those that are left out select the default mode."""
    NGRAM_SIZE: Annotated[int, Field(ge=0, le=128)] = 30
    """Length of the n-grams that may not be repeated within the window, up to 128. 0 disables the n-gram guard."""
    WINDOW_SIZE: Annotated[int, Field(gt=0, le=8192)] = 90
    """Number of most recent tokens that the n-gram guard examines."""
    LOOPS: Literal["off", "end", "retry"] = "retry"
    """What to do with pages on which the model repeats itself: `end` stops them early, `retry` reads them again with a
    stricter guard and then in another mode, `off` relies on the n-gram guard alone."""
    PAGES_AT_ONCE: Positive = 32
    """Maximum number of pages of one request that are read at the same time. Each of them takes about 20 MB of
    memory."""

    # Limits on what clients may send
    PICTURE_REQUIRED: bool = False
    """Answer chat requests without a picture with status 400. By default they are answered with a sentence that says
    what to send, because many tools test the connection with such a request."""
    MAX_IMAGES: Positive = 64
    """Maximum number of images and documents in one request."""
    MAX_PAGES: Positive = 2000
    """Maximum number of pages in one request, counting all of its documents."""
    MAX_WAITING_PAGES: Positive = 4000
    """Maximum number of waiting pages. Requests beyond it are rejected with status 429."""
    GUARANTEED_PAGES: Annotated[int, Field(ge=0)] = 0
    """Number of pages, waiting or being read, that every client may have even if others have filled the queue. A client
    is an API key, or an IP address if there are no keys. 0 means an eighth of MAX_WAITING_PAGES."""
    MAX_PAGES_OF_CLIENT: Annotated[int, Field(ge=0)] = 0
    """Maximum number of pages, waiting or being read, for each client. 0 means no limit."""
    MAX_BODY_MB: Positive = 100
    """Maximum size of a request body in megabytes."""
    MEMORY_BUDGET_MB: Annotated[int, Field(ge=0)] = 0
    """Memory, in megabytes, for everything that requests make the server allocate: headers, bodies, downloads, decoded
    pages, and answers. Requests beyond it wait, or are rejected with status 429; each client can have a sixteenth of it
    whatever others use. 0 means a quarter of the memory of the machine or container, and at least 512 MB. The engine's
    memory is not included."""
    MAX_CONNECTIONS: Annotated[int, Field(ge=0)] = 0
    """Maximum number of open connections. Beyond it, idle connections are closed in favour of new ones, and if none is
    idle, new ones are rejected with status 503. 0 means 4096, or fewer if `ulimit -n` does not allow so many."""
    MAX_CONNECTIONS_OF_ADDRESS: Annotated[int, Field(ge=0)] = 0
    """Maximum number of open connections of each IP address (of each /64 network for IPv6). 0 means a quarter of
    MAX_CONNECTIONS for addresses of the internet, and no limit for private and loopback addresses: a reverse proxy
    connects from there, for all clients."""
    RECEIVE_TIMEOUT: Seconds = 120.0
    """Seconds within which the headers of a request must arrive, and, counted separately, its body."""
    SEND_TIMEOUT: Seconds = 60.0
    """Seconds within which a client must accept 48 KiB of a response that is ready to be sent. Slower clients are
    disconnected."""
    MAX_IMAGE_MB: Positive = 50
    """Maximum file size of an image or document in megabytes."""
    MAX_IMAGE_MEGAPIXELS: Positive = 100
    """Maximum size of a decoded image in megapixels. Larger pages of a PDF are rendered at a lower resolution."""
    MAX_PROMPT_CHARS: Positive = 8000
    """Maximum length of the text that is sent with an image, in characters."""
    SCHEMA_TIMEOUT: Seconds = 10.0
    """Seconds of CPU time within which the JSON schema of a `response_format` must compile."""
    ALLOW_URLS: bool = True
    """Download images and documents from http(s) URLs that requests contain."""
    ALLOW_PRIVATE_URLS: bool = False
    """Also download from private and loopback addresses. Leave this off if untrusted clients can send requests."""
    ALLOWED_IMAGE_HOSTS: Hosts = ""
    """Comma-separated list of the hosts that images may be downloaded from: `images.example.com`, or `*.example.com`
    for all hosts below it. Empty allows every host."""
    FETCH_TIMEOUT: Seconds = 20.0
    """Seconds within which the download of an image must finish."""
    PREPARE_THREADS: Annotated[int, Field(ge=0)] = 0
    """Number of threads that resize images. 0 means one for each CPU core, up to 16."""
    DECODE_WORKERS: Annotated[int, Field(ge=0)] = 0
    """Number of processes that decode images and render PDFs. 0 means one for each CPU core, up to 8. They are started
    on demand."""
    DECODE_TIMEOUT: Seconds = 30.0
    """Maximum number of seconds for decoding or rendering a page."""
    DECODE_MEMORY_MB: Positive = 4000
    """Maximum address space of each of the processes that decode images and render PDFs, in megabytes."""

    # Batches and their files
    BATCHES: bool = True
    """Serve /v1/files and /v1/batches. Without them, nothing is stored, and requests cannot name uploaded files."""
    DATABASE_URL: DatabaseUrl = SecretStr("")
    """Database of files and batches, as an SQLAlchemy URL: `postgresql+psycopg://user:password@host/name`. Empty
    selects SQLite in this project's `data` folder. Servers that have the same database and the same storage share their
    work."""
    STORAGE_URL: str = ""
    """Storage for the content of files, as an fsspec URL: a folder, or `s3://bucket/prefix`. Empty selects this
    project's `data/files` folder."""
    BATCH_CONCURRENCY: Annotated[int, Field(ge=0)] = 0
    """Maximum number of pages of batches that are read at the same time, while no other request is waiting. 0 means
    half of MAX_CONCURRENCY."""
    BATCH_LEASE: Annotated[float, Field(ge=1)] = 30.0
    """Seconds after which another server takes over the batches of a server that has died."""
    MAX_BATCH_REQUESTS: Positive = 50_000
    """Maximum number of requests in a batch."""
    MAX_BATCHES_OF_CLIENT: Positive = 100
    """Maximum number of unfinished batches for each API key."""
    MAX_FILE_MB: Positive = 200
    """Maximum size, in megabytes, of an uploaded file. Files to read are also limited by MAX_IMAGE_MB."""
    MAX_STORED_MB: Positive = 20_000
    """Maximum total size, in megabytes, of all stored files and of the answers of unfinished batches. Beyond it,
    uploads are rejected, and the remaining requests of a batch fail."""
    MAX_STORED_MB_OF_CLIENT: Annotated[int, Field(ge=0)] = 0
    """Maximum total size, in megabytes, of the stored files and of the answers of unfinished batches of each API key. 0
    means half of MAX_STORED_MB if there are API keys, and no limit otherwise."""
    FILE_DAYS: Positive = 30
    """Days after which a file is deleted, unless the file has its own expiry, and after which a finished batch is
    deleted."""

    ZERO_RETENTION: bool = False
    """Keep nothing of requests and answers. /v1/files and /v1/batches are off, large uploads and overlays are held in
    memory instead of temporary files, and no core dumps are written."""

    # Access, and logging
    API_KEYS: Keys = SecretStr("")
    """Comma-separated list of API keys: `KEY`, or `sha256:HASH`, or either one with a label for the log, such as
    `alice:KEY`, followed by options such as `KEY expires=2027-01-31`. If this and API_KEYS_FILE are both empty,
    requests need no key. Set it in the environment rather than by the flag, which other users of the machine can
    see."""
    API_KEYS_FILE: str = ""
    """File with further API keys in the same form, one per line, with # for comments. It is read again when it changes.
    If it is empty, or missing for more than a minute, it grants access to nobody."""
    METRICS_KEY_REQUIRED: bool = True
    """Whether /metrics requires an API key, if any are configured."""
    ALLOWED_HOSTS: HostsOrAll = ""
    """Comma-separated list of the names by which clients may reach this server if it has no API keys:
    `ocr.example.com`, `*.example.com`, or * for all. Addresses, and names that no public domain can have, such as
    localhost, are always allowed."""
    DEBUGGABLE: bool = False
    """Whether other programs of the server's user may read its memory and environment variables, as py-spy and
    debuggers do, and whether it leaves a core dump when it crashes. Root can read them in any case."""
    CORS_ORIGINS: Origins = ""
    """Comma-separated list of origins whose web pages may use this server from a browser, or * for all. Empty allows
    only the server's own pages."""
    LOG_FORMAT: Literal["text", "json"] = "text"
    """Format of the log: `text` for people, or `json` for one JSON object per line."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Settings:
        _ = self.resolution_mode  # raises ValueError if the sizes are invalid
        if self.ZERO_RETENTION and self.BATCHES and "BATCHES" in self.model_fields_set:
            raise ValueError("ZERO_RETENTION excludes BATCHES, which stores files and answers")
        if self.NGRAM_SIZE > self.WINDOW_SIZE:
            raise ValueError(f"NGRAM_SIZE must not be greater than WINDOW_SIZE ({self.WINDOW_SIZE})")
        return self

    @property
    def resolution_mode(self) -> ResolutionMode:
        """The resolution mode for requests that do not select one."""
        return ResolutionMode(
            base_size=self.BASE_SIZE,
            image_size=self.IMAGE_SIZE,
            crop_mode=self.CROP_MODE,
            min_crops=self.MIN_CROPS,
            max_crops=self.MAX_CROPS,
        )

    @cached_property
    def detail_modes(self) -> dict[str, str]:
        """DETAIL_MODES: detail → name of a mode."""
        return detail_modes(self.DETAIL_MODES)

    @cached_property
    def model_aliases(self) -> tuple[str, ...]:
        """The names of MODEL_ALIASES."""
        return tuple(split_list(self.MODEL_ALIASES))

    @property
    def model_path(self) -> str:
        """MODEL_PATH, with `auto` resolved."""
        if self.MODEL_PATH != "auto":
            return self.MODEL_PATH
        return PUBLISHED_MODEL if has_nvidia_gpu() else str(EMBEDDED_CHECKPOINT)

    @cached_property
    def family(self) -> Family:
        """The family of the served model: its modes, prompts, tokens and labels."""
        return family_of(self.model_path)

    @cached_property
    def memory_budget_bytes(self) -> int:
        """MEMORY_BUDGET_MB in bytes, with 0 resolved."""
        return self.MEMORY_BUDGET_MB * 1_000_000 or default_capacity()

    @property
    def database_url(self) -> str:
        """DATABASE_URL, or the default if it is empty."""
        return self.DATABASE_URL.get_secret_value() or f"sqlite:///{DATA / 'batches.db'}"

    @property
    def storage_url(self) -> str:
        """STORAGE_URL, or the default if it is empty."""
        return self.STORAGE_URL or str(DATA / "files")

    @property
    def serves_batches(self) -> bool:
        """Whether /v1/files and /v1/batches are served."""
        return self.BATCHES and not self.ZERO_RETENTION

    @property
    def max_stored_mb_of_client(self) -> int:
        """MAX_STORED_MB_OF_CLIENT, with 0 resolved. Without API keys it remains 0: no limit."""
        return self.MAX_STORED_MB_OF_CLIENT or (max(1, self.MAX_STORED_MB // 2) if self.has_keys else 0)

    @property
    def batch_concurrency(self) -> int:
        """BATCH_CONCURRENCY, with 0 resolved."""
        return self.BATCH_CONCURRENCY or max(1, self.MAX_CONCURRENCY // 2)

    @property
    def guaranteed_pages(self) -> int:
        """GUARANTEED_PAGES, with 0 resolved."""
        return self.GUARANTEED_PAGES or self.MAX_WAITING_PAGES // 8

    @property
    def allowed_image_hosts(self) -> tuple[str, ...]:
        """The hosts of ALLOWED_IMAGE_HOSTS in lower case."""
        return tuple(host.lower() for host in split_list(self.ALLOWED_IMAGE_HOSTS))

    @property
    def has_keys(self) -> bool:
        """Whether requests need an API key."""
        return bool(self.API_KEYS.get_secret_value() or self.API_KEYS_FILE)

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        """The names of ALLOWED_HOSTS in lower case."""
        return tuple(host.lower() for host in split_list(self.ALLOWED_HOSTS))

    @property
    def cors_origins(self) -> list[str]:
        """The origins of CORS_ORIGINS in lower case, as browsers send them."""
        return [origin.lower() for origin in split_list(self.CORS_ORIGINS)]

    @property
    def checkpoint_name(self) -> str:
        """Name of the checkpoint that may be shown to clients: it contains no path of this machine."""
        if self.is_embedded:
            return "the embedded checkpoint (nano)"
        folder = Path(self.model_path)
        return folder.name if folder.is_dir() else self.model_path

    @property
    def is_embedded(self) -> bool:
        """Whether the server uses the small embedded checkpoint instead of a real model."""
        return Path(self.model_path).resolve() == EMBEDDED_CHECKPOINT


def load(arguments: list[str] | None = None) -> Settings:
    """Load the settings from this file, the environment and the flags.

    Args:
        arguments: the command-line arguments; None means those of this process.

    Raises:
        SystemExit: with code 2, after printing a message for each invalid setting.
    """
    try:
        return CliApp.run(Settings, cli_args=sys.argv[1:] if arguments is None else arguments)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else "settings"
            print(f"error: {name}: {problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        print("Run with --help to list all settings.", file=sys.stderr)
        raise SystemExit(2) from None


def has_nvidia_gpu() -> bool:
    """Return whether there is a GPU that the installed torch can use."""
    import torch  # imported here because it takes seconds and is rarely needed

    return bool(torch.cuda.is_available())
