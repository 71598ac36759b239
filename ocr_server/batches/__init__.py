"""Files and batches: many requests at once, read in the background, that survive whatever ends the server."""
