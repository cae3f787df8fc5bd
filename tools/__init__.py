"""What writes pages and pictures of the documentation; `make documents` runs the quick ones."""
