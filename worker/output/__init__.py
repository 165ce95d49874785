"""From tokens to what a client sees: text, reasoning and tool calls. Imports no MLX."""
