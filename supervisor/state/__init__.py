"""The state directory: where one instance keeps its files, and how it writes them."""
