"""OpenAI's batches API."""
