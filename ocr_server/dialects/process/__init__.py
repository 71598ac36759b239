"""The API of Open WebUI's external document loader."""
