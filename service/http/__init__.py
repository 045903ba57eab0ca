"""The HTTP border: application, protocol, middleware, request and response bodies, routes."""
