"""A plugin that uses every hook."""
