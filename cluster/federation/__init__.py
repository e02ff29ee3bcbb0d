"""What the keepers of a federation do: making, signing and publishing its root document (ADR 18)."""
