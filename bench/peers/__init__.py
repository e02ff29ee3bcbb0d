"""The bench's peers: message brokers that are driven by the same generator, for comparison. One module each: how it is
started, what it promises, and its wire protocol as bytes."""
