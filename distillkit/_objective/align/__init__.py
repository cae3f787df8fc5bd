"""Reconcile what student and teacher expose, by name and never in silence."""
