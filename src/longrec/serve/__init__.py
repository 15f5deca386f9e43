"""Online serving: service, HTTP server and client."""
