"""Ollama's API: bodies become the worker's requests, frames become its answers. Pure."""
