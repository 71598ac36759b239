"""OpenAI's files API."""
