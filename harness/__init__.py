"""The nouns, clocks, energy, the run loop and plugin lookup; imports nothing else of edgewatt."""
