"""The kit that tests are made of: servers, what stands around them, what is held or counted."""
