"""One model in a process of its own: from a request's frames to tokens and back."""
