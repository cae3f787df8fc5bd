"""Is interrupted from the keyboard while it is imported."""

raise KeyboardInterrupt
