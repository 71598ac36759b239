"""Side-by-side measurements: this server's parts against vLLM's own, in one run."""
