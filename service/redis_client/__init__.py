"""The connection to Redis: pool, time limits, circuit breaker."""
