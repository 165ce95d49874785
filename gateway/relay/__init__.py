"""From a request to its frames: a lease of the supervisor's, and the workers that it grants."""
