"""uvicorn's part: listening sockets, the HTTP protocol with its bounds (always on), processes."""
