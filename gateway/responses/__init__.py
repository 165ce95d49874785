"""OpenAI's responses: a body becomes the worker's request, its frames the answer's items. Pure."""
