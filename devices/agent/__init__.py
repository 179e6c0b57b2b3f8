"""What runs on the device: the agent (docs/agent-protocol.md)."""
