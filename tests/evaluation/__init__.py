"""lm-eval against Bulkhead and against mlx-lm's own evaluation, with the same figures."""
