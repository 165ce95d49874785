"""Child processes' lives: started, watched, signalled, reaped, and never left behind."""
