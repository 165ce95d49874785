"""The gateway process: HTTP in, frames out. It holds no weights and imports no MLX."""
