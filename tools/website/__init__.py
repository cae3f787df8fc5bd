"""The documentation as a site: what ``make docs`` stages for Sphinx, builds and numbers.

``python -m tools.website`` builds it; ``conf.py`` configures Sphinx.
"""
