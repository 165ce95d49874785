"""All of MLX: the thread that loads, generates and frees, and what one decode step does."""
