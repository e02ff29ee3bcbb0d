"""Pure: bytes and events in, effects out. No await, no clock, no randomness."""
