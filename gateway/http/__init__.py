"""HTTP itself: the server, who may talk to it, bodies in, headers and errors out."""
