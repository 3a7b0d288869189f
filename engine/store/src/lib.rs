//! The database: ordered rows of bytes, revisions, frozen views.
