"""From a request to its prompt's tokens. Imports no MLX."""
