"""Looks at what stopped nodes left on their disks: whose envelopes rest where, and by what right."""
