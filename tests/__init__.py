"""The tests of distillkit, a folder for each of its rooms, and one for what they share."""
