"""Fixtures shared with the tests of the HTTP side: the app with a fake engine."""

from tests.ocr_server.conftest import app, engine, settings

__all__ = ["app", "engine", "settings"]
