"""instructor: an object of a schema, by a call that it demands."""

from __future__ import annotations

import sys

import instructor
from pydantic import BaseModel


class Opening(BaseModel):
    """When a place opens."""

    place: str
    hour: int


client = instructor.from_provider(f"openai/{sys.argv[1]}")
messages = [{"role": "user", "content": "The harbour opens at nine."}]
found = client.create(response_model=Opening, messages=messages)
assert (found.place, found.hour) == ("harbour", 9), found
*_, last = client.create_partial(response_model=Opening, messages=messages)
assert (last.place, last.hour) == ("harbour", 9), last
print(f"{found.place} {found.hour}")
