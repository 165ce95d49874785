"""The API described for programs: which routes there are, and the OpenAPI document of them."""
