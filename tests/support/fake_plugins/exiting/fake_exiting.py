"""Thinks that it is a program."""

import sys

sys.exit("usage: fake_exiting FILE")
