"""A page that shows what is distilled: words, patches, and where both models look."""
