"""What models take in memory, beside what they are charged: one module a scene."""
