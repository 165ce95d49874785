"""What frameworks' users write: a tool loop with nothing set but base URL and key, which come from
the environment. Each takes the model's name as its argument, runs where its framework is installed,
and imports nothing of Bulkhead's."""
