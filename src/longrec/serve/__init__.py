"""Who knocks: service, HTTP, client."""
