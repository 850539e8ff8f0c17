"""What endpoints of every version share: dependencies, routing, requests and answers, OpenAPI."""
