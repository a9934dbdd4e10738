"""The archive: every recorded sample in MongoDB, none lost.  docs/archive.md shows the schema and the way there."""
