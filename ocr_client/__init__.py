"""The command `deepseek-ocr`: reads files through a server, which it knows by HTTP only."""

__version__ = "0.1.0"
