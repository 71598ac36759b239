"""URLs and bytes → pages, under limits."""
