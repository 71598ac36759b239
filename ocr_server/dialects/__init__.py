"""The APIs of the server, one folder each, and what they share."""
