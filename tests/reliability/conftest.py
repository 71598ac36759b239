"""The same app and played engine as the tests of the HTTP side."""

from tests.ocr_server.conftest import app, engine, settings

__all__ = ["app", "engine", "settings"]
