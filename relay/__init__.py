"""One relay: the pure core, the ports, and the thin trio shells around them. Never imports `cluster`."""
