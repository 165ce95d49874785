"""Models' files: which are served, where they lie, and what memory they need."""
