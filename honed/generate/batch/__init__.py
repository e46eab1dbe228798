"""Many prompts answered into a file."""
