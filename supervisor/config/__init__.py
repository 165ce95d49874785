"""What the server was told to do: the file, the flags and the environment as frozen settings."""
