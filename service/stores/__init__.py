"""Users' histories: the store protocol, its back ends (SQLite, Redis) and the guard around them."""
