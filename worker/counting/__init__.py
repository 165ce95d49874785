"""The counter: a process that counts prompts' tokens, with tokenizers and without weights."""
