"""The command `deepseek-ocr`, which reads files with a server. It communicates with the server by HTTP only."""

__version__ = "0.1.0"
