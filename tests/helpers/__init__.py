"""What several tests use: servers, pools, models, requests and their expected answers."""
