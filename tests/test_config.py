"""Settings: their sources and precedence, and how invalid values are reported."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import torch
from pydantic import SecretStr

import config
from config import EMBEDDED_CHECKPOINT, ENV_PREFIX, PUBLISHED_MODEL, Settings, load
from deepseek_ocr.modes import MODES

FIELDS = Settings.model_fields
CHANGES: dict[str, tuple[str, Any]] = {
    "HOST": ("127.0.0.1", "127.0.0.1"),
    "PORT": ("8080", 8080),
    "MODEL_NAME": ("ocr", "ocr"),
    "MODEL_ALIASES": ("gpt-4o,scan-*", "gpt-4o,scan-*"),
    "SHUTDOWN_TIMEOUT": ("1.5", 1.5),
    "LOG_LEVEL": ("debug", "debug"),
    "MODEL_PATH": ("a/b", "a/b"),
    "MODEL_REVISION": ("v1.0", "v1.0"),
    "MAX_MODEL_LEN": ("4096", 4096),
    "GPU_MEMORY_UTILIZATION": ("0.5", 0.5),
    "CPU_KV_CACHE_GIB": ("3", 3),
    "TENSOR_PARALLEL_SIZE": ("2", 2),
    "DATA_PARALLEL_SIZE": ("2", 2),
    "MAX_CONCURRENCY": ("7", 7),
    "ENFORCE_EAGER": ("true", True),
    "ENGINE_STALL_TIMEOUT": ("1.5", 1.5),
    "ENGINE_RESTARTS": ("0", 0),
    "BASE_SIZE": ("512", 512),
    "IMAGE_SIZE": ("512", 512),
    "CROP_MODE": ("false", False),
    "MIN_CROPS": ("1", 1),
    "MAX_CROPS": ("9", 9),
    "DEFAULT_PROMPT": ("Free OCR.", "Free OCR."),
    "DEFAULT_OUTPUT": ("blocks", "blocks"),
    "DETAIL_MODES": ("low=tiny", "low=tiny"),
    "NGRAM_SIZE": ("0", 0),
    "WINDOW_SIZE": ("50", 50),
    "LOOPS": ("end", "end"),
    "PAGES_AT_ONCE": ("8", 8),
    "PICTURE_REQUIRED": ("true", True),
    "MAX_IMAGES": ("5", 5),
    "MAX_PAGES": ("5", 5),
    "MAX_WAITING_PAGES": ("5", 5),
    "GUARANTEED_PAGES": ("5", 5),
    "MAX_PAGES_OF_CLIENT": ("5", 5),
    "MAX_BODY_MB": ("6", 6),
    "MEMORY_BUDGET_MB": ("600", 600),
    "MAX_CONNECTIONS": ("500", 500),
    "MAX_CONNECTIONS_OF_ADDRESS": ("50", 50),
    "RECEIVE_TIMEOUT": ("6", 6.0),
    "SEND_TIMEOUT": ("6.5", 6.5),
    "MAX_IMAGE_MB": ("6", 6),
    "MAX_IMAGE_MEGAPIXELS": ("6", 6),
    "MAX_PROMPT_CHARS": ("6", 6),
    "SCHEMA_TIMEOUT": ("1.5", 1.5),
    "ALLOW_URLS": ("false", False),
    "ALLOW_PRIVATE_URLS": ("true", True),
    "ALLOWED_IMAGE_HOSTS": ("a.example,*.b.example", "a.example,*.b.example"),
    "FETCH_TIMEOUT": ("0.5", 0.5),
    "PREPARE_THREADS": ("3", 3),
    "DECODE_WORKERS": ("3", 3),
    "DECODE_TIMEOUT": ("1.5", 1.5),
    "DECODE_MEMORY_MB": ("6", 6),
    "BATCHES": ("false", False),
    "DATABASE_URL": ("sqlite:////tmp/a.db", SecretStr("sqlite:////tmp/a.db")),
    "STORAGE_URL": ("s3://bucket/files", "s3://bucket/files"),
    "BATCH_CONCURRENCY": ("3", 3),
    "BATCH_LEASE": ("2.5", 2.5),
    "MAX_BATCH_REQUESTS": ("5", 5),
    "MAX_BATCHES_OF_CLIENT": ("5", 5),
    "MAX_FILE_MB": ("5", 5),
    "MAX_STORED_MB": ("5", 5),
    "MAX_STORED_MB_OF_CLIENT": ("5", 5),
    "FILE_DAYS": ("5", 5),
    "ZERO_RETENTION": ("true", True),
    "API_KEYS": ("alice:sk-1,sk-2", SecretStr("alice:sk-1,sk-2")),
    "API_KEYS_FILE": ("keys.txt", "keys.txt"),
    "METRICS_KEY_REQUIRED": ("false", False),
    "ALLOWED_HOSTS": ("ocr.example.com", "ocr.example.com"),
    "DEBUGGABLE": ("true", True),
    "CORS_ORIGINS": ("https://example.org", "https://example.org"),
    "LOG_FORMAT": ("json", "json"),
}
"""For each setting, a value other than the default: as text, and as parsed."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def error_output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what is printed for invalid settings."""
    with pytest.raises(SystemExit) as caught:
        load(list(arguments))
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err


class TestPrecedence:
    def test_every_setting_has_a_changed_value(self) -> None:
        assert list(CHANGES) == list(FIELDS)

    @pytest.mark.parametrize("name", CHANGES)
    def test_default(self, name: str) -> None:
        assert getattr(load([]), name) == FIELDS[name].default
        assert FIELDS[name].default != CHANGES[name][1]

    @pytest.mark.parametrize("name", CHANGES)
    def test_environment_variable(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        written, value = CHANGES[name]
        monkeypatch.setenv(ENV_PREFIX + name, written)
        assert getattr(load([]), name) == value

    @pytest.mark.parametrize("name", CHANGES)
    def test_flag(self, name: str) -> None:
        written, value = CHANGES[name]
        if isinstance(value, bool):
            arguments = [flag(name) if value else flag(name).replace("--", "--no-", 1)]
        else:
            arguments = [flag(name), written]
        settings = load(arguments)
        assert getattr(settings, name) == value
        others = {other: getattr(settings, other) for other in FIELDS if other != name}
        assert others == {other: FIELDS[other].default for other in others}

    def test_flag_overrides_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(f"{ENV_PREFIX}PORT", "1111")
        monkeypatch.setenv(f"{ENV_PREFIX}MAX_CROPS", "4")
        settings = load(["--port", "2222"])
        assert (settings.PORT, settings.MAX_CROPS) == (2222, 4)

    def test_variables_without_the_prefix_are_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORT", "1111")
        monkeypatch.setenv("MODEL_NAME", "other")
        assert (load([]).PORT, load([]).MODEL_NAME) == (8000, "deepseek-ocr")

    @pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.annotation is bool])
    def test_boolean_flags(self, name: str) -> None:
        assert getattr(load([flag(name)]), name) is True
        assert getattr(load([flag(name).replace("--", "--no-", 1)]), name) is False


class TestInvalidValues:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("PORT", "99999"),
            ("PORT", "-1"),
            ("PORT", "http"),
            ("MODEL_NAME", "a:b"),
            ("MODEL_NAME", "a b"),
            ("MODEL_NAME", ""),
            ("SHUTDOWN_TIMEOUT", "0"),
            ("LOG_LEVEL", "loud"),
            ("MAX_MODEL_LEN", "0"),
            ("GPU_MEMORY_UTILIZATION", "1.1"),
            ("CPU_KV_CACHE_GIB", "0"),
            ("CPU_KV_CACHE_GIB", "2.5"),
            ("MAX_CONCURRENCY", "0"),
            ("BASE_SIZE", "100"),
            ("IMAGE_SIZE", "2048"),
            ("MIN_CROPS", "7"),
            ("MAX_CROPS", "10"),
            ("NGRAM_SIZE", "91"),
            ("NGRAM_SIZE", "-1"),
            ("WINDOW_SIZE", "0"),
            ("MAX_IMAGES", "0"),
            ("FETCH_TIMEOUT", "-1"),
            ("PREPARE_THREADS", "-1"),
            ("API_KEYS", ","),
            ("API_KEYS", "two words"),
            ("API_KEYS", "sha256:abc"),
            ("ALLOWED_IMAGE_HOSTS", "https://example.org"),
            ("ALLOWED_IMAGE_HOSTS", "*"),
            ("ALLOWED_IMAGE_HOSTS", "a.*.example.org"),
            ("ALLOWED_HOSTS", "http://ocr.example.com"),
            ("ALLOWED_HOSTS", "ocr.example.com:8000"),
            ("CORS_ORIGINS", "example.org"),
            ("CORS_ORIGINS", "null"),
            ("CORS_ORIGINS", "https://example.org/path"),
            ("LOG_FORMAT", "xml"),
        ],
    )
    def test_the_error_names_the_setting(
        self, name: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        by_flag = error_output(capsys, f"{flag(name)}={value}")
        assert name in by_flag.upper()
        monkeypatch.setenv(ENV_PREFIX + name, value)
        by_environment = error_output(capsys)
        assert name in by_environment.upper()
        assert "--help" in by_environment

    @pytest.mark.parametrize("name", ["CROP_MODE", "ALLOW_URLS", "ENFORCE_EAGER"])
    def test_invalid_boolean(
        self, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(ENV_PREFIX + name, "perhaps")
        assert name in error_output(capsys)

    def test_the_error_names_every_invalid_setting(self, capsys: pytest.CaptureFixture[str]) -> None:
        printed = error_output(capsys, "--port=-1", "--max-images=0")
        assert "PORT" in printed
        assert "MAX_IMAGES" in printed

    def test_unknown_flag(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--prot" in error_output(capsys, "--prot", "5")

    def test_unknown_setting_in_code(self) -> None:
        with pytest.raises(ValueError, match="PROT"):
            Settings(PROT=5)  # type: ignore[call-arg]


class TestHelp:
    def test_every_setting_is_documented(self) -> None:
        for name, field in FIELDS.items():
            assert field.description, name
            assert field.description.rstrip().endswith("."), name

    def test_help_lists_every_setting(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            load(["--help"])
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        for name, field in FIELDS.items():
            assert re.search(rf"{re.escape(flag(name))}[\s,]", printed), name
            first_words = " ".join((field.description or "").split()[:3])
            assert first_words in " ".join(printed.split()), name
        assert "openai_api_server.py" in printed

    def test_every_name_is_upper_case(self) -> None:
        assert all(re.fullmatch(r"[A-Z][A-Z_]+", name) for name in FIELDS)


class TestModel:
    @pytest.mark.parametrize("arguments", [["--model", "a/b"], ["--model=a/b"], ["--model-path", "a/b"]])
    def test_model_is_a_short_name_of_model_path(self, arguments: list[str]) -> None:
        settings = load(arguments)
        assert (settings.MODEL_PATH, settings.model_path, settings.checkpoint_name) == ("a/b", "a/b", "a/b")
        assert not settings.is_embedded

    def test_auto_depends_on_the_gpu(self) -> None:
        expected = PUBLISHED_MODEL if torch.cuda.is_available() else str(EMBEDDED_CHECKPOINT)
        assert load([]).model_path == expected
        assert load([]).is_embedded is not torch.cuda.is_available()
        assert config.has_nvidia_gpu() is torch.cuda.is_available()

    def test_the_embedded_checkpoint(self) -> None:
        settings = load(["--model", str(EMBEDDED_CHECKPOINT)])
        assert settings.is_embedded
        assert "embedded" in settings.checkpoint_name
        assert (EMBEDDED_CHECKPOINT / "config.json").is_file()

    def test_the_embedded_checkpoint_is_recognised_by_any_path(self) -> None:
        assert load(["--model", f"{EMBEDDED_CHECKPOINT}/../checkpoint/"]).is_embedded

    def test_the_checkpoint_name_of_a_folder_has_no_path(self, tmp_path: Any) -> None:
        folder = tmp_path / "mine"
        folder.mkdir()
        assert load(["--model", str(folder)]).checkpoint_name == "mine"


class TestMode:
    def test_the_default_is_gundam(self) -> None:
        assert load([]).resolution_mode == MODES["gundam"]

    def test_the_mode_follows_the_settings(self) -> None:
        arguments = ["--base-size=512", "--image-size=512", "--no-crop-mode"]
        assert load(arguments).resolution_mode == MODES["tiny"]
