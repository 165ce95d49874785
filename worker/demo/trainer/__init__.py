"""Makes the demo model: its training text, its tokenizer, its network and the training itself.

It stays in the repository: the wheel has the model alone.
"""
