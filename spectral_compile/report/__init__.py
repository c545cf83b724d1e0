"""What a compile did, for people: explained in tables, dumped as files that run, and shown as a page."""
