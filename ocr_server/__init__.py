"""The HTTP side: OpenAI's API over an engine that reads pages."""

__version__ = "0.1.0"
