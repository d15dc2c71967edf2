//! What happened: metric families, and the admin door.
