"""Faults at random moments under load: every answer must be what it would be without them."""
