"""Its entry point names an attribute that is not there."""
