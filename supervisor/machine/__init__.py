"""The machine's memory: readers for each system, and the monitor that tells what they read."""
