"""A bundle behind an address: OpenAI's protocol from the host's runtime."""
