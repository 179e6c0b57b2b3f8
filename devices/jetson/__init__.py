"""Jetson boards, locally or over ssh: their rails, facts, conditions and controls."""
