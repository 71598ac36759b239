"""vLLM's engine: starting, watching, restarting and using it. The only package that imports vLLM."""
