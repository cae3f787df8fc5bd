"""The log of a training, and the page that shows it."""
