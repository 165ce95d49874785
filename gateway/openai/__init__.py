"""OpenAI's API, pure: bodies become requests for a worker, and a worker's frames become answers."""
