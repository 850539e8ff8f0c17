"""HTTP parts shared by the endpoints of every version: dependencies, routing, requests and answers,
OpenAPI."""
