"""HTTP without OCR: middleware, API keys, connections, server-sent events."""
