"""What is noted while a model runs; nothing is worked out here."""
