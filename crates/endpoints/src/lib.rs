//! Who can serve and how loaded they are: scraper, in-flight ledger, immutable snapshots.
