"""A worker process: one model, on one thread that owns MLX, behind a Unix socket."""
