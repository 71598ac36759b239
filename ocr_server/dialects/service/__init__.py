"""What the server says about itself: information, models, health, metrics, the web page."""
