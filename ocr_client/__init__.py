"""The command `deepseek-ocr`, which reads files with a server. It communicates with the server by HTTP only."""

from ocr_server import __version__

__all__ = ["__version__"]
