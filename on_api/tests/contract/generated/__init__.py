"""Programs that use the clients which others generate from our documents."""
