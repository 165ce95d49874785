"""What the three kinds of process say to each other, and how it is framed.

`frames` holds the message types, `codec` turns bytes into frames and back without touching a
socket, `stream` is the thin asyncio shell around the codec.
"""
