"""Every decision about models, requests and memory, without I/O: an event goes into `pool.Pool`,
and effects come back that somebody else must carry out."""
