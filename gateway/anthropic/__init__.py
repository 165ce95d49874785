"""Anthropic's API: bodies in, answers and errors out. Pure; knows neither aiohttp nor workers."""
