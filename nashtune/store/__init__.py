"""What is on disk: atomic files, committed work units, stage records, the ledger of paid calls."""
