"""HTTP: routes, parameters, responses, authentication, TLS."""
