"""Pages → answers, in order: admission, reader, retries. asyncio only."""
