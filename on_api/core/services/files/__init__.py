"""Files and their bytes: records, reading, private files, identities, visibility."""
