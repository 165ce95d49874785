"""Stand-ins: workers that follow a script, and a supervisor whose workers a test plays."""
