"""Files and batches: large numbers of requests that are read in the background and survive a crash of the server."""
