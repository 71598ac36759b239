"""Benchmarks that compare this server and its parts with vLLM's own in the same run."""
