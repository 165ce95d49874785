"""Properties that hold for random inputs, in short as tests and in long as commands."""
