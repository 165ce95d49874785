"""One function a route: it joins what HTTP, the API and the relay do."""
