"""What makes many relays one system: links, directory, forwarders, the composition root and the CLI."""
